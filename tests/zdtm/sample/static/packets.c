/* Has a pipe in packet mode, which no move carries. */
#define _GNU_SOURCE
#include "daemon.h"

int main(int count, char **words)
{
	int starter = begin(count, words), ends[2];

	if (pipe2(ends, O_DIRECT) < 0)
		return end("there is no such pipe");
	is_ready(starter);
	while (!is_told)
		pause();
	return end(NULL);
}
