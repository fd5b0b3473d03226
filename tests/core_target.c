/* A process with memory of all kinds, which waits: for the tests of core files. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 2048 };

static uint8_t changed[PAGES] = {1};

static void *wait_too(void *unused)
{
	pause();
	return unused;
}

int main(int argc, char **argv)
{
	uint8_t *private = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *shared =
		mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint8_t *heap = malloc(100000);
	FILE *self = argc > 1 ? fopen(argv[1], "rb") : NULL;
	pthread_t thread;

	if (private == MAP_FAILED || shared == MAP_FAILED || !heap || !self)
		return 1;
	uint8_t *file = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fileno(self), 0);
	if (file == MAP_FAILED || pthread_create(&thread, NULL, wait_too, NULL))
		return 1;
	file[5] = 5;
	memset(heap, 0xa5, 100000);
	for (uint64_t page = 0; page < PAGES; page += 3) {
		uint64_t number = page + 1;
		memcpy(private + page * PAGE + 100, &number, sizeof number);
		changed[page] = (uint8_t)page;
	}
	for (int page = 0; page < 64; page += 2)
		memset(shared + page * PAGE, page + 1, PAGE);
	printf("%lx %lx\n", (unsigned long)private, (unsigned long)shared);
	fflush(stdout);
	return getchar() == EOF ? 0 : 1;
}
