// Part of what is loaded into CRIU (preload.c): a lazy-pages daemon whose program faults much gets on with the rest.
//
// The daemon fetches what nobody has asked for only when epoll_wait(2) has nothing more for it. A program that touches its
// memory in any order keeps it from that, and each page that it is served cuts the daemon's list of what is missing once more,
// a list that it walks for every page: 1 GiB of Redis under 10,000 writes a second took 80 s. So after each moment in which
// there were many faults they are kept from the daemon for another one, in which it fetches some ten MiB in large pieces. Who
// has faulted waits for its page, as it does anyway; nobody is stopped, which a program could see: a stop makes system calls
// fail with EINTR (signal(7)), and is told to its parent.
//
// Nor does the daemon know what becomes of a request while it is under way. When pages of it are given back, unmapped or moved,
// it cuts the request (handle_remove and handle_remap of its uffd.c), takes the answer for the part that has the old beginning,
// waits for the other ones for ever, and answers no fault in them. So it does not hear of such an event before all that is
// under way has come. The program goes on meanwhile, for it waits only until the event is read: what comes for pages that are
// no longer where they were is refused by the kernel (ENOENT), and stays on the daemon's list until the event changes that.
//
// And it does not know that mprotect(2) and madvise(2) cut mappings in two, of which there is no event. The kernel fills no range
// that lies in two mappings (ENOENT), nor one whose first page is there (EEXIST), and the daemon would fetch the same range again
// and again. So what cannot be filled as a whole is filled page by page.
#include <asm/ioctl.h>
#include <errno.h>
#include <linux/eventpoll.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stddef.h>

#define FILES 1024 // one for each process
#define RUN 10000  // microseconds in which faults are served before anything else
#define STAND 10000 // and for which they wait after that
#define MANY 10	    // faults in the former; fewer are not in the daemon's way

#define NEXT ((void *)-1L) // RTLD_NEXT of <dlfcn.h>
#define CLOCK_MONOTONIC 1
#define NAME "anon_inode:[userfaultfd]"
#define GET 7 // PS_IOV_GET of CRIU's page-xfer.c
#define COMMAND 0xffff
#define TURN 100 // milliseconds

struct timespec {
	long seconds, nanoseconds;
};

// What the daemon asks a page server for, and the head of its answer: page_server_iov of page-xfer.c.
struct request {
	unsigned int command;
	unsigned long long pages, address, process;
};

void *dlsym(void *handle, const char *name);
int clock_gettime(int clock, struct timespec *time);
long readlink(const char *path, char *text, size_t size);
int getpagesize(void);

// The userfaultfds in the daemon's epoll set, what is asked for of each, and what the daemon is not to hear yet.
static struct {
	int set, fd, has_message;
	struct epoll_event event;
	struct uffd_msg message;
} files[FILES];
static size_t count, faults, messages;
static int server = -1;
static unsigned long long under_way; // bytes that the page server was asked for
static int are_hidden;
static long long turn; // when the next moment begins

static int control(int set, int operation, int fd, struct epoll_event *event)
{
	static int (*next)(int, int, int, struct epoll_event *);

	if (next == NULL)
		next = (int (*)(int, int, int, struct epoll_event *))dlsym(NEXT, "epoll_ctl");
	return next(set, operation, fd, event);
}

static int is_userfaultfd(int fd)
{
	char path[32] = "/proc/self/fd/", digits[12], target[sizeof(NAME)];
	size_t length = sizeof("/proc/self/fd/") - 1, left = 0;

	do
		digits[left++] = (char)('0' + fd % 10);
	while ((fd /= 10) > 0);
	while (left > 0)
		path[length++] = digits[--left];
	if (readlink(path, target, sizeof(target)) != sizeof(NAME) - 1)
		return 0;
	for (size_t at = 0; at < sizeof(NAME) - 1; at++)
		if (target[at] != NAME[at])
			return 0;
	return 1;
}

static void forget(int set, int fd)
{
	for (size_t at = 0; at < count; at++)
		if (files[at].set == set && files[at].fd == fd) {
			messages -= files[at].has_message;
			files[at] = files[--count];
			return;
		}
}

int epoll_ctl(int set, int operation, int fd, struct epoll_event *event)
{
	int result = control(set, operation, fd, event);

	if (result != 0 || fd < 0)
		return result;
	if (operation != EPOLL_CTL_MOD)
		forget(set, fd);
	if (operation == EPOLL_CTL_ADD && count < FILES && is_userfaultfd(fd)) {
		files[count].set = set;
		files[count].fd = fd;
		files[count].has_message = 0;
		files[count++].event = *event;
	}
	return result;
}

// Let the daemon hear of faults, or not.
static void show(int set, int hidden)
{
	for (size_t at = count; at-- > 0;) {
		struct epoll_event event = files[at].event;

		if (files[at].set != set)
			continue;
		if (hidden)
			event.events = 0;
		if (control(set, EPOLL_CTL_MOD, files[at].fd, &event) != 0)
			forget(set, files[at].fd); // it was closed
	}
	are_hidden = hidden;
}

long send(int fd, const void *data, size_t size, int flags)
{
	static long (*next)(int, const void *, size_t, int);
	const struct request *request = data;
	long sent;

	if (next == NULL)
		next = (long (*)(int, const void *, size_t, int))dlsym(NEXT, "send");
	sent = next(fd, data, size, flags);
	if (sent == sizeof(*request) && (request->command & COMMAND) == GET) {
		server = fd;
		under_way += sizeof(*request) + request->pages * (unsigned long long)getpagesize();
	}
	return sent;
}

long recv(int fd, void *data, size_t size, int flags)
{
	static long (*next)(int, void *, size_t, int);
	long received;

	if (next == NULL)
		next = (long (*)(int, void *, size_t, int))dlsym(NEXT, "recv");
	received = next(fd, data, size, flags);
	if (fd == server && received > 0)
		under_way -= (unsigned long long)received < under_way ? (unsigned long long)received : under_way;
	return received;
}

static long fill(int fd, struct uffdio_copy *range, unsigned long long done, unsigned long long size,
		 int (*next)(int, unsigned long, ...))
{
	struct uffdio_copy part = *range;

	part.dst += done;
	part.src += done;
	part.len = size;
	part.copy = 0;
	if (next(fd, UFFDIO_COPY, &part) == 0)
		return (long)size;
	return part.copy != 0 ? (long)part.copy : -errno;
}

// Fill a range, and tell how much of it is filled from its beginning, as the kernel does.
static int fill_pages(int fd, struct uffdio_copy *range, int (*next)(int, unsigned long, ...))
{
	unsigned long long done = 0, page = (unsigned long long)getpagesize();
	long result = 0;

	while (done < range->len) {
		result = fill(fd, range, done, range->len - done, next);
		if (result == -ENOENT && range->len - done > page)
			result = fill(fd, range, done, page, next);
		if (result == -EEXIST)
			result = (long)page; // it is there
		if (result <= 0)
			break;
		done += (unsigned long long)result;
	}
	range->copy = done > 0 ? (long long)done : result;
	if (done == range->len)
		return 0;
	if (result == -EAGAIN) {
		// A mapping is being changed, of which the daemon will hear. It remembers what it could not fill, but not
		// that somebody waits for it: he is to ask again.
		struct uffdio_range rest = { range->dst + done, range->len - done };

		next(fd, UFFDIO_WAKE, &rest);
	}
	errno = done > 0 ? EAGAIN : (int)-result;
	return -1;
}

int ioctl(int fd, unsigned long request, ...)
{
	static int (*next)(int, unsigned long, ...);
	va_list rest;
	void *argument;

	if (next == NULL)
		next = (int (*)(int, unsigned long, ...))dlsym(NEXT, "ioctl");
	va_start(rest, request);
	argument = va_arg(rest, void *);
	va_end(rest);
	if (request == UFFDIO_COPY)
		return fill_pages(fd, argument, next);
	return next(fd, request, argument);
}

// Make an event one that changes requests, if it does; the daemon need not hear that a removal is one.
static int changes_requests(int fd, struct uffd_msg *message)
{
	struct uffdio_range range;

	switch (message->event) {
	case UFFD_EVENT_REMOVE:
		// The mapping stays, and from now on its pages are empty rather than missing. The daemon would do the same,
		// later, and give up if the program has unmapped it by then (EINVAL, ENOMEM).
		range.start = message->arg.remove.start;
		range.len = message->arg.remove.end - message->arg.remove.start;
		ioctl(fd, UFFDIO_UNREGISTER, &range);
		message->event = UFFD_EVENT_UNMAP;
		return 1;
	case UFFD_EVENT_UNMAP:
	case UFFD_EVENT_REMAP:
		return 1;
	default: // a fork is told of all requests
		return 0;
	}
}

long read(int fd, void *data, size_t size)
{
	static long (*next)(int, void *, size_t);
	struct uffd_msg *message = data;
	size_t at = 0;
	long got;

	if (next == NULL)
		next = (long (*)(int, void *, size_t))dlsym(NEXT, "read");
	while (at < count && files[at].fd != fd)
		at++;
	if (at == count || size != sizeof(*message))
		return next(fd, data, size);
	if (files[at].has_message && under_way == 0) {
		*message = files[at].message;
		files[at].has_message = 0;
		messages--;
		return sizeof(*message);
	}
	if (messages == 0) {
		got = next(fd, data, size);
		if (got != sizeof(*message))
			return got;
		faults += message->event == UFFD_EVENT_PAGEFAULT;
		if (!changes_requests(fd, message) || under_way == 0)
			return got;
		files[at].message = *message;
		files[at].has_message = 1;
		messages++;
	}
	// What is asked for now would be under way as well, and what happened after an event is to be heard of after it.
	errno = EAGAIN;
	return -1;
}

// Wait until the daemon can hear of an event that was kept from it.
static int wait_for_answers(int set, struct epoll_event *events, int room, int (*next)(int, struct epoll_event *, int, int))
{
	int number;

	for (size_t at = 0; under_way == 0 && at < count; at++)
		if (files[at].has_message) {
			*events = files[at].event;
			events->events = EPOLLIN;
			return 1;
		}
	do // with nothing for it, the daemon would go on to ask for what it has not been asked for
		number = next(set, events, room, TURN);
	while (number == 0);
	return number;
}

int epoll_wait(int set, struct epoll_event *events, int room, int timeout)
{
	static int (*next)(int, struct epoll_event *, int, int);
	struct timespec time;
	long long now;

	if (next == NULL)
		next = (int (*)(int, struct epoll_event *, int, int))dlsym(NEXT, "epoll_wait");
	if (messages > 0)
		return wait_for_answers(set, events, room, next);
	if (timeout != 0 || count == 0) { // it fetches nothing by itself yet
		if (are_hidden)
			show(set, 0);
		faults = 0;
		return next(set, events, room, timeout);
	}
	clock_gettime(CLOCK_MONOTONIC, &time);
	now = time.seconds * 1000000LL + time.nanoseconds / 1000;
	if (now >= turn) {
		int hide = !are_hidden && faults >= MANY;

		if (hide != are_hidden)
			show(set, hide);
		turn = now + (hide ? STAND : RUN);
		faults = 0;
	}
	return next(set, events, room, timeout);
}
