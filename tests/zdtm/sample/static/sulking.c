/* Fails wherever it is. */
#include "daemon.h"

int main(int count, char **words)
{
	int starter = begin(count, words);

	is_ready(starter);
	while (!is_told)
		pause();
	return end("it does not like it here");
}
