// Part of what is loaded into CRIU (preload.c): a lazy-pages daemon whose program faults much gets on with the rest.
//
// The daemon fetches what nobody has asked for only when epoll_wait(2) has nothing more for it. A program that touches its
// memory in any order keeps it from that, and each page that it is served cuts the daemon's list of what is missing once more,
// a list that it walks for every page: 1 GiB of Redis under 10,000 writes a second took 80 s. So after each moment in which
// there were many faults they are kept from the daemon for another one, in which it fetches some ten MiB in large pieces. Who
// has faulted waits for its page, as it does anyway; nobody is stopped, which a program could see: a stop makes system calls
// fail with EINTR (signal(7)), and is told to its parent.
#include <linux/eventpoll.h>
#include <stddef.h>

#define FILES 1024 // one for each process
#define RUN 10000  // microseconds in which faults are served before anything else
#define STAND 10000 // and for which they wait after that
#define MANY 10	    // faults in the former; fewer are not in the daemon's way

#define NEXT ((void *)-1L) // RTLD_NEXT of <dlfcn.h>
#define CLOCK_MONOTONIC 1
#define NAME "anon_inode:[userfaultfd]"

struct timespec {
	long seconds, nanoseconds;
};

void *dlsym(void *handle, const char *name);
int clock_gettime(int clock, struct timespec *time);
long readlink(const char *path, char *text, size_t size);

// The userfaultfds in the daemon's epoll set, and what is asked for of each.
static struct {
	int set, fd;
	struct epoll_event event;
} files[FILES];
static size_t count, faults;
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

static size_t among(int set, const struct epoll_event *events, int number)
{
	size_t found = 0;

	for (int at = 0; at < number; at++)
		for (size_t file = 0; file < count; file++)
			if (files[file].set == set && files[file].event.data == events[at].data) {
				found++;
				break;
			}
	return found;
}

int epoll_wait(int set, struct epoll_event *events, int room, int timeout)
{
	static int (*next)(int, struct epoll_event *, int, int);
	struct timespec time;
	long long now;
	int number;

	if (next == NULL)
		next = (int (*)(int, struct epoll_event *, int, int))dlsym(NEXT, "epoll_wait");
	if (timeout != 0 || count == 0) { // it fetches nothing by itself yet
		if (are_hidden)
			show(set, 0);
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
	number = next(set, events, room, timeout);
	if (!are_hidden)
		faults += among(set, events, number);
	return number;
}
