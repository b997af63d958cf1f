// Loaded into CRIU (LD_PRELOAD), for things that it cannot do by itself; see preload.py.
//
// - Where root lacks CAP_SYS_RESOURCE the kernel does not tell prlimit(2) the limits of another user's process, though everyone
//   may read them in /proc/PID/limits: what could not be read with the one is read from the other.
// - While /proc is covered by the proc of a program's PID namespace (proccover.py), CRIU's own is at $P4FERRY_PROC. Paths
//   below /proc that it uses are looked up there first. Both mounts are kept out of what it reads in mountinfo: it refuses
//   files that were opened in a file system which another one lies over now, and the program's /proc is one.
//
// - CRIU makes every eventfd without EFD_SEMAPHORE. One that was a semaphore has the counter `MARKED` in the image
//   (notifications.py).
//
// It is built without a C library, since CRIU may have one of its own, and needs only what every one has.
#define _GNU_SOURCE // O_PATH
#include <asm/unistd.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>

#define INFINITE (~0ULL)
#define LIMITS 16

struct limit {
	unsigned long long soft, hard;
};

struct stat64;
void *dlsym(void *handle, const char *name);
char *getenv(const char *name);
int fstatat64(int folder, const char *path, struct stat64 *status, int flags);
long read(int fd, void *buffer, size_t size);
int close(int fd);
long real_terminal(const char *path, char *text, size_t size, long length); // devtty.c

// The names of limits as the kernel writes them, in the order of their numbers (fs/proc/base.c).
static const char *const names[LIMITS] = {
	"Max cpu time",	    "Max file size",	 "Max data size",     "Max stack size",
	"Max core file size", "Max resident set", "Max processes",     "Max open files",
	"Max locked memory", "Max address space", "Max file locks",    "Max pending signals",
	"Max msgqueue size", "Max nice priority", "Max realtime priority", "Max realtime timeout",
};

#define NEXT ((void *)-1L) // RTLD_NEXT of <dlfcn.h>

static long call(long number, long a, long b, long c, long d, long e, long f)
{
	static long (*next)(long number, ...);

	if (next == NULL)
		next = (long (*)(long, ...))dlsym(NEXT, "syscall");
	return next(number, a, b, c, d, e, f);
}

static int open_uncovered(int folder, const char *path, int flags, unsigned int mode);

static const char *after(const char *line, const char *name)
{
	for (; *name != '\0'; name++, line++)
		if (*line != *name)
			return NULL;
	return *line == ' ' ? line : NULL;
}

static const char *value(const char *text, unsigned long long *result)
{
	while (*text == ' ')
		text++;
	*result = INFINITE;
	if (*text < '0' || *text > '9') { // unlimited
		while (*text != ' ' && *text != '\n' && *text != '\0')
			text++;
		return text;
	}
	for (*result = 0; *text >= '0' && *text <= '9'; text++)
		*result = *result * 10 + (unsigned long long)(*text - '0');
	return text;
}

static int open_limits(int pid)
{
	char path[32] = "/proc/", digits[12];
	int at = 6, count = 0;

	do
		digits[count++] = (char)('0' + pid % 10);
	while ((pid /= 10) > 0);
	while (count > 0)
		path[at++] = digits[--count];
	for (const char *rest = "/limits"; *rest != '\0'; rest++)
		path[at++] = *rest;
	path[at] = '\0';
	return open_uncovered(AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
}

static int read_limit(int pid, int resource, struct limit *limit)
{
	char text[4096];
	long length = 0, got;
	int fd = open_limits(pid);

	if (fd < 0)
		return -1;
	while ((got = read(fd, text + length, sizeof(text) - 1 - (size_t)length)) > 0)
		length += got;
	close(fd);
	text[length] = '\0';
	for (const char *line = text; *line != '\0';) {
		const char *values = after(line, names[resource]);

		if (values != NULL) {
			value(value(values, &limit->soft), &limit->hard);
			return 0;
		}
		while (*line != '\0' && *line++ != '\n')
			;
	}
	return -1;
}

int prlimit64(int pid, int resource, const struct limit *wanted, struct limit *old)
{
	long result = call(__NR_prlimit64, pid, resource, (long)wanted, (long)old, 0, 0);

	if (result != 0 && errno == EPERM && pid > 0 && wanted == NULL && old != NULL && resource >= 0 && resource < LIMITS)
		if (read_limit(pid, resource, old) == 0)
			return 0;
	return (int)result;
}

#define MARKED 0x53454D41U
#define EFD_SEMAPHORE 1

int eventfd(unsigned int counter, int flags)
{
	if (counter == MARKED) {
		counter = 0;
		flags |= EFD_SEMAPHORE;
	}
	return (int)call(__NR_eventfd2, counter, flags, 0, 0, 0, 0);
}

// CRIU calls prlimit through this, too.
long syscall(long number, ...)
{
	long values[6];
	va_list rest;

	va_start(rest, number);
	for (int at = 0; at < 6; at++)
		values[at] = va_arg(rest, long);
	va_end(rest);
	if (number == __NR_prlimit64)
		return prlimit64((int)values[0], (int)values[1], (const struct limit *)values[2], (struct limit *)values[3]);
	return call(number, values[0], values[1], values[2], values[3], values[4], values[5]);
}

int prlimit(int pid, int resource, const struct limit *wanted, struct limit *old)
{
	return prlimit64(pid, resource, wanted, old);
}

#define LONGEST 256

// Return where a path below /proc is while that is covered, in `room`; another path as it is.
static const char *uncovered(const char *path, char *room)
{
	const char *place, *prefix = "/proc";
	size_t at = 0;

	for (; *prefix != '\0'; prefix++, at++)
		if (path == NULL || path[at] != *prefix)
			return path;
	if ((path[at] != '/' && path[at] != '\0') || (place = getenv("P4FERRY_PROC")) == NULL)
		return path;
	const char *rest = path + at;

	for (at = 0; *place != '\0' && at < LONGEST - 1; place++)
		room[at++] = *place;
	for (; *rest != '\0' && at < LONGEST - 1; rest++)
		room[at++] = *rest;
	room[at] = '\0';
	if (*rest != '\0')
		return path;
	return room;
}

// Whether /proc is covered, which is so while CRIU's own can be found at its other place.
static int is_covered(void)
{
	char room[LONGEST];
	const char *self = uncovered("/proc/self", room);
	int was = errno, covered = self == room && call(__NR_faccessat, AT_FDCWD, (long)self, 0, 0, 0, 0) == 0;

	errno = was;
	return covered;
}

static const char *actual(const char *path, char *room)
{
	const char *other = uncovered(path, room);

	return other == room && is_covered() ? other : path;
}

static int open_uncovered(int folder, const char *path, int flags, unsigned int mode)
{
	char room[LONGEST];

	return (int)call(__NR_openat, folder, (long)actual(path, room), flags, mode, 0, 0);
}

static long number(const char **text)
{
	long found = 0;

	while (**text >= '0' && **text <= '9')
		found = found * 10 + (*(*text)++ - '0');
	return found;
}

// Return the number of the mount that an open file is in (proc_pid_fdinfo(5)); -1 if it cannot be read.
static long mount_of(int fd)
{
	char path[] = "/proc/self/fdinfo/\0\0\0\0\0\0\0\0\0\0\0", digits[12], text[512];
	int at = sizeof("/proc/self/fdinfo/") - 1, count = 0, info;
	long length;

	do
		digits[count++] = (char)('0' + fd % 10);
	while ((fd /= 10) > 0);
	while (count > 0)
		path[at++] = digits[--count];
	info = open_uncovered(AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
	if (info < 0)
		return -1;
	length = read(info, text, sizeof(text) - 1);
	close(info);
	text[length < 0 ? 0 : length] = '\0';
	for (const char *line = text; *line != '\0'; line++) {
		const char *key = "mnt_id:\t", *rest = line;

		while (*key != '\0' && *key == *rest)
			key++, rest++;
		if (*key == '\0')
			return number(&rest);
	}
	return -1;
}

static int write_all(int fd, const char *text, long length)
{
	while (length > 0) {
		long put = call(__NR_write, fd, (long)text, length, 0, 0, 0);

		if (put <= 0)
			return -1;
		text += put;
		length -= put;
	}
	return 0;
}

// Copy the lines of a mountinfo file (proc_pid_mountinfo(5): "ID PARENT …") without one mount and what is mounted in it.
static int copy_without(int from, int to, long mount)
{
	char text[8192];
	long length = 0, got;
	int at_start = 1, drop = 0;

	do {
		got = read(from, text + length, sizeof(text) - 1 - (size_t)length);
		if (got < 0)
			return -1;
		length += got;
		text[length] = '\0';
		while (length > 0) {
			long end = 0;

			while (end < length && text[end] != '\n')
				end++;
			int is_whole = end < length;

			if (!is_whole && got > 0 && length < (long)sizeof(text) - 1)
				break; // the rest of the line comes with the next read
			if (at_start) {
				const char *field = text;
				long id = number(&field);

				field += *field == ' ';
				drop = id == mount || number(&field) == mount;
			}
			end += is_whole;
			if (!drop && write_all(to, text, end) != 0)
				return -1;
			at_start = is_whole;
			length -= end;
			for (long place = 0; place <= length; place++)
				text[place] = text[place + end];
		}
	} while (got > 0);
	return 0;
}

// Return a copy of an open mountinfo file without the mounts that cover /proc; the file itself if it cannot be made.
static int without_cover(int info)
{
	int cover = (int)call(__NR_openat, AT_FDCWD, (long)"/proc", O_PATH | O_CLOEXEC, 0, 0, 0), copy;
	long mount;

	if (cover < 0)
		return info;
	mount = mount_of(cover);
	close(cover);
	copy = mount < 0 ? -1 : (int)call(__NR_memfd_create, (long)"mountinfo", 1 /* MFD_CLOEXEC */, 0, 0, 0, 0);
	if (copy < 0)
		return info;
	if (copy_without(info, copy, mount) != 0) {
		close(copy);
		call(__NR_lseek, info, 0, 0, 0, 0, 0);
		return info;
	}
	call(__NR_lseek, copy, 0, 0, 0, 0, 0);
	close(info);
	return copy;
}

static int is_mountinfo(const char *path)
{
	const char *name = "mountinfo";

	while (*name != '\0' && *name == *path)
		name++, path++;
	return *name == *path;
}

int openat64(int folder, const char *path, int flags, ...)
{
	va_list rest;
	unsigned int mode;
	int fd;

	va_start(rest, flags);
	mode = va_arg(rest, unsigned int);
	va_end(rest);
	fd = open_uncovered(folder, path, flags, mode);
	return fd >= 0 && is_mountinfo(path) && is_covered() ? without_cover(fd) : fd;
}

int open64(const char *path, int flags, ...)
{
	va_list rest;
	unsigned int mode;

	va_start(rest, flags);
	mode = va_arg(rest, unsigned int);
	va_end(rest);
	return open_uncovered(AT_FDCWD, path, flags, mode);
}

int open(const char *path, int flags, ...)
{
	va_list rest;
	unsigned int mode;

	va_start(rest, flags);
	mode = va_arg(rest, unsigned int);
	va_end(rest);
	return open_uncovered(AT_FDCWD, path, flags, mode);
}

void *fopen64(const char *path, const char *mode)
{
	static void *(*next)(const char *path, const char *mode);
	char room[LONGEST];

	if (next == NULL)
		next = (void *(*)(const char *, const char *))dlsym(NEXT, "fopen");
	return next(actual(path, room), mode);
}

void *fopen(const char *path, const char *mode)
{
	return fopen64(path, mode);
}

void *opendir(const char *path)
{
	static void *(*next)(const char *path);
	char room[LONGEST];

	if (next == NULL)
		next = (void *(*)(const char *))dlsym(NEXT, "opendir");
	return next(actual(path, room));
}

long readlink(const char *path, char *text, size_t size)
{
	char room[LONGEST];

	long length = call(__NR_readlinkat, AT_FDCWD, (long)actual(path, room), (long)text, (long)size, 0, 0);

	return real_terminal(path, text, size, length);
}

int access(const char *path, int mode)
{
	char room[LONGEST];

	return (int)call(__NR_faccessat, AT_FDCWD, (long)actual(path, room), mode, 0, 0, 0);
}

int stat64(const char *path, struct stat64 *status)
{
	char room[LONGEST];

	return fstatat64(AT_FDCWD, actual(path, room), status, 0);
}
