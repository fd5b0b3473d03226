/*
 * A program with much memory that is checkpointed and restored, and says on a board when it runs:
 *
 *     checkpointed BOARD MIB FILE...
 *
 * It fills its memory with the files' bytes, over and over, each time from a little further on, so
 * that no two clusters are alike. The board is a file that all processes see: what the program is
 * to do from now on, and what came of it. After a restore it goes on here, with memory that is
 * missing.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES UINT64_C(4096)
#define WAITS_MAX  (1 << 17)
/* Between two looks at the clock more than this is a checkpoint, and not another program's turn. */
#define AWAY_NS UINT64_C(100000000)

enum order { ORDER_NOTHING, ORDER_TOUCH, ORDER_SPOTS, ORDER_CHECK };

/* Numbers of 64 bits, which benchmarks/processes.py reads and writes by their places. */
struct board {
	uint64_t order; /* written by who measures, before the restore */
	uint64_t count; /* touches, or spots of 1 MiB */
	uint64_t seed;
	uint64_t slow_ns; /* of touches that are counted */
	atomic_uint_fast64_t is_ready;
	atomic_uint_fast64_t resumed_ns; /* CLOCK_REALTIME of the first progress after being away */
	atomic_uint_fast64_t done;       /* 1: the order is */
	uint64_t waits;                  /* how many there are below */
	uint64_t wrong;                  /* pages, of an order to check */
	uint64_t waits_ns[WAITS_MAX];
};

static unsigned char *memory;
static uint64_t page_count;
static uint32_t *sums; /* of all pages */

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now(clockid_t clock)
{
	struct timespec at;

	clock_gettime(clock, &at);
	return (uint64_t)at.tv_sec * 1000000000 + (uint64_t)at.tv_nsec;
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static unsigned touch(uint64_t page)
{
	return *(volatile unsigned char *)(memory + page * PAGE_BYTES);
}

static uint32_t sum_of(uint64_t page)
{
	const uint64_t *words = (const uint64_t *)(memory + page * PAGE_BYTES);
	uint64_t sum = 0;

	for (unsigned i = 0; i < PAGE_BYTES / 8; i++)
		sum = (sum ^ words[i]) * UINT64_C(0x100000001b3);
	return (uint32_t)(sum >> 32);
}

static void fill(uint64_t length, int files, char **paths)
{
	uint64_t done = 0;

	for (off_t turn = 0; done < length; turn++) {
		for (int i = 0; i < files && done < length; i++) {
			int fd = open(paths[i], O_RDONLY | O_CLOEXEC);
			off_t at = turn * 1040;
			ssize_t got;

			if (fd < 0)
				fail(paths[i]);
			while (done < length
			       && (got = pread(fd, memory + done, length - done, at)) > 0) {
				done += (uint64_t)got;
				at += got;
			}
			close(fd);
		}
	}
}

/* Random touches; of those that took long, how long. */
static void touch_pages(struct board *board)
{
	uint64_t state = board->seed;

	for (uint64_t i = 0; i < board->count; i++) {
		uint64_t page = next_random(&state) % page_count;
		uint64_t begin = now(CLOCK_MONOTONIC), took;

		touch(page);
		took = now(CLOCK_MONOTONIC) - begin;
		if (took >= board->slow_ns && board->waits < WAITS_MAX)
			board->waits_ns[board->waits++] = took;
	}
}

static void touch_spots(struct board *board)
{
	uint64_t state = board->seed;

	for (uint64_t i = 0; i < board->count; i++) {
		uint64_t first = next_random(&state) % (page_count - 256);

		for (uint64_t page = first; page < first + 256; page++)
			touch(page);
	}
}

static void obey(struct board *board)
{
	uint64_t state = board->seed;

	switch (board->order) {
	case ORDER_TOUCH:
		touch_pages(board);
		break;
	case ORDER_SPOTS:
		touch_spots(board);
		break;
	case ORDER_CHECK:
		for (uint64_t i = 0; i < board->count; i++) {
			uint64_t page = next_random(&state) % page_count;

			board->wrong += sum_of(page) != sums[page];
		}
		break;
	default:
		break;
	}
}

static void live(struct board *board)
{
	uint64_t last = now(CLOCK_REALTIME), state = 1;

	atomic_store(&board->is_ready, 1);
	for (;;) {
		uint64_t at;

		if (!board->resumed_ns) /* then it touches what it is told to */
			touch(next_random(&state) % page_count);
		at = now(CLOCK_REALTIME);
		if (at > last + AWAY_NS && !board->resumed_ns)
			board->resumed_ns = at;
		if (!board->done && board->resumed_ns) {
			obey(board);
			atomic_store(&board->done, 1);
		}
		last = now(CLOCK_REALTIME);
		usleep(100);
	}
}

int main(int argc, char **argv)
{
	struct board *board;
	uint64_t length;
	int fd;

	if (argc < 4)
		return 2;
	fd = open(argv[1], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, sizeof(*board)))
		fail(argv[1]);
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	length = strtoull(argv[2], NULL, 10) << 20;
	page_count = length / PAGE_BYTES;
	memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	sums = malloc(page_count * sizeof(*sums));
	if (board == MAP_FAILED || memory == MAP_FAILED || sums == NULL)
		fail("memory");
	madvise(memory, length, MADV_NOHUGEPAGE);
	fill(length, argc - 3, argv + 3);
	for (uint64_t page = 0; page < page_count; page++)
		sums[page] = sum_of(page);
	close(fd);
	live(board);
}
