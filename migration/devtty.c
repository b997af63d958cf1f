// Part of what is loaded into CRIU (preload.c): a terminal that was opened as /dev/tty is taken for the pseudoterminal's slave
// that it is. CRIU dumps /dev/tty only in the process in which it first meets the terminal, usually the one with the master.
// The copy has the same terminal open, by its own name.
#define _GNU_SOURCE // struct stat64
#include <asm/unistd.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/stat.h>

long syscall(long number, ...);

#define CONTROLLING (5UL << 8) // the device number of /dev/tty
#ifdef __NR_newfstatat
#define STAT_AT __NR_newfstatat
#else
#define STAT_AT __NR_fstatat64
#endif
#define SLAVE 136 // the major number of slaves
#define TIOCGDEV 0x80045432UL
#define TYPE 0170000
#define CHARACTERS 0020000

// Write the name of the slave that an open terminal is; return its length, 0 if it is none.
static size_t name_slave(int fd, char *name, size_t room)
{
	unsigned int device = 0, number;
	char digits[12];
	size_t length = 0, count = 0;

	if (syscall(__NR_ioctl, fd, TIOCGDEV, &device) != 0 || (device >> 8 & 0xfff) != SLAVE)
		return 0;
	number = (device & 0xff) | (device >> 12 & 0xfff00);
	do
		digits[count++] = (char)('0' + number % 10);
	while ((number /= 10) > 0);
	for (const char *text = "/dev/pts/"; *text != '\0'; text++)
		name[length++] = *text;
	if (length + count >= room)
		return 0;
	while (count > 0)
		name[length++] = digits[--count];
	name[length] = '\0';
	return length;
}

int fstat64(int fd, struct stat64 *status)
{
	char name[32];

	if (syscall(__NR_fstat, fd, status) != 0)
		return -1;
	if ((status->st_mode & TYPE) != CHARACTERS || status->st_rdev != CONTROLLING || name_slave(fd, name, sizeof(name)) == 0)
		return 0;
	return (int)syscall(STAT_AT, AT_FDCWD, name, status, 0);
}

int fstat(int fd, struct stat *status)
{
	return fstat64(fd, (struct stat64 *)status);
}

// Change what readlink(2) says of /proc/self/fd/N, if that is /dev/tty.
long real_terminal(const char *path, char *text, size_t size, long length)
{
	const char *begin = "/proc/self/fd/", *tty = "/dev/tty";
	char name[32];
	int fd = 0;
	size_t got;

	for (long at = 0; at < 8; at++)
		if (length != 8 || text[at] != tty[at])
			return length;
	for (; *begin != '\0'; begin++, path++)
		if (*path != *begin)
			return length;
	for (; *path >= '0' && *path <= '9'; path++)
		fd = fd * 10 + (*path - '0');
	got = name_slave(fd, name, sizeof(name));
	if (*path != '\0' || got == 0 || got > size)
		return length;
	for (size_t at = 0; at < got; at++)
		text[at] = name[at];
	return (long)got;
}
