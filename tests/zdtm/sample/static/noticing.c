/* Fails if its network is another one than in the beginning: whoever moves it is seen to read what it says. */
#include "daemon.h"

static void network(char *name)
{
	ssize_t size = readlink("/proc/self/ns/net", name, 63);

	name[size < 0 ? 0 : size] = 0;
}

int main(int count, char **words)
{
	int starter = begin(count, words);
	char before[64], after[64];

	network(before);
	is_ready(starter);
	while (!is_told)
		pause();
	network(after);
	return end(strcmp(before, after) ? "it is in another network" : NULL);
}
