/* What a test program of zdtm's kind does: it goes into the background when it is ready, waits for SIGTERM,
 * and then says in its output file whether everything is as it was. */
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *pid_path, *out_path;
static char unfinished[4096];
static volatile sig_atomic_t is_told;

static void told(int number)
{
	is_told = number;
}

static void options(int count, char **words)
{
	for (int i = 1; i < count; i++) {
		if (strncmp(words[i], "--pidfile=", 10) == 0)
			pid_path = words[i] + 10;
		else if (strncmp(words[i], "--outfile=", 10) == 0)
			out_path = words[i] + 10;
	}
	if (!pid_path || !out_path) {
		fprintf(stderr, "usage: %s --pidfile=FILE --outfile=FILE\n", words[0]);
		exit(2);
	}
	snprintf(unfinished, sizeof(unfinished), "%s.inprogress", out_path);
}

/* Take the user's place that the environment names. */
static void change_user(void)
{
	const char *group = getenv("ZDTM_GID"), *user = getenv("ZDTM_UID");

	if ((group && setgid(atoi(group))) || (user && setuid(atoi(user)))) {
		perror("setuid");
		exit(1);
	}
}

/* Go into the background; returns there, with a pipe whose end tells the starter that the program is ready. */
static int begin(int count, char **words)
{
	struct sigaction action = { .sa_handler = told };
	int ready[2], out;
	char byte;
	pid_t child;

	options(count, words);
	change_user();
	out = open(unfinished, O_WRONLY | O_CREAT | O_EXCL | O_APPEND, 0644);
	if (out < 0 || pipe(ready) < 0 || (child = fork()) < 0) {
		perror(unfinished);
		exit(1);
	}
	if (child > 0) {
		FILE *file;

		close(ready[1]);
		if (read(ready[0], &byte, 1) != 1)
			exit(1);
		file = fopen(pid_path, "w");
		if (!file || fprintf(file, "%d", (int)child) < 0 || fclose(file))
			exit(1);
		_exit(0);
	}
	setsid();
	close(ready[0]);
	dup2(out, 1);
	dup2(out, 2);
	close(out);
	sigaction(SIGTERM, &action, NULL);
	return ready[1];
}

static void is_ready(int starter)
{
	if (write(starter, "", 1) != 1)
		_exit(1);
	close(starter);
}

/* Say the last word. */
static int end(const char *fault)
{
	dprintf(1, fault ? "FAIL: %s\n" : "PASS\n", fault);
	rename(unfinished, out_path);
	unlink(pid_path);
	return fault != NULL;
}
