// Loaded into CRIU (LD_PRELOAD), for two things that it cannot do by itself; see preload.py.
//
// - Where root lacks CAP_SYS_RESOURCE the kernel does not tell prlimit(2) the limits of another user's process, though everyone
//   may read them in /proc/PID/limits: what could not be read with the one is read from the other.
// - While /proc is covered by the proc of a program's PID namespace (proccover.py), CRIU's own is at $P4FERRY_PROC. Paths
//   below /proc that it uses are looked up there first.
//
// It is built without a C library, since CRIU may have one of its own, and needs only what every one has.
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

int openat64(int folder, const char *path, int flags, ...)
{
	va_list rest;
	unsigned int mode;

	va_start(rest, flags);
	mode = va_arg(rest, unsigned int);
	va_end(rest);
	return open_uncovered(folder, path, flags, mode);
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

	return call(__NR_readlinkat, AT_FDCWD, (long)actual(path, room), (long)text, (long)size, 0, 0);
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
