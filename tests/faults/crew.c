// A server of which every thread, or every process, has one connection: crew threads|processes COUNT PORT
//
// Each counts aloud on its connection, and ends all when anything on it goes wrong: a write while the socket is in repair mode
// fails (EPERM), as does one after a reset.
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int listener, pause_us;

static void fail(const char *what)
{
	printf("BAD %s: %s\n", what, strerror(errno));
	fflush(stdout);
	_exit(3);
}

static void *count(void *unused)
{
	int connection = accept(listener, NULL, NULL);

	(void)unused;
	if (connection < 0)
		fail("accept");
	for (uint32_t number = 0;; number++) {
		struct timespec rest = {pause_us / 1000000, pause_us % 1000000 * 1000L};

		if (write(connection, &number, sizeof(number)) != sizeof(number))
			fail("write");
		while (nanosleep(&rest, &rest) != 0)
			;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	int is_of_threads = strcmp(argv[argc - 3], "threads") == 0, crew = atoi(argv[argc - 2]), on = 1;

	address.sin_port = htons((uint16_t)atoi(argv[argc - 1]));
	pause_us = 1000 + crew * 100;
	listener = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) != 0 || listen(listener, 1024) != 0)
		fail("listen");
	printf("listening\n");
	fflush(stdout);
	for (int member = 1; member < crew; member++) {
		pthread_t thread;

		if (is_of_threads) {
			if (pthread_create(&thread, NULL, count, NULL) != 0)
				fail("pthread_create");
		} else if (fork() == 0) {
			count(NULL);
		}
	}
	count(NULL);
	return argc;
}
