/*
 * What the system calls of a fault cost by themselves, where nobody waits and nothing sleeps:
 * prints one JSON object of medians in microseconds. Exits with 77 where there is no userfaultfd.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE   4096ul
#define TURNS  4000u
#define PIECE  (16 * PAGE)
#define LENGTH (TURNS * PIECE)

static uint32_t took_ns[TURNS];
static uint8_t ready[PIECE] __attribute__((aligned(PAGE)));

static uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static int compare(const void *left, const void *right)
{
	uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;

	return (a > b) - (a < b);
}

static void show(const char *name, const char *end)
{
	qsort(took_ns, TURNS, sizeof(took_ns[0]), compare);
	printf("\"%s\": %.3f%s", name, took_ns[TURNS / 2] / 1000.0, end);
}

static int open_uffd(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1 /* user mode only */);
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
		exit(77);
	return fd;
}

/* In another order than that of addresses: page tables are there after the first round. */
static uint64_t place(uint64_t memory, unsigned turn)
{
	return memory + (uint64_t)turn * 1913 % TURNS * PIECE;
}

static void copies(int fd, uint64_t memory, uint64_t bytes, const char *name)
{
	for (unsigned turn = 0; turn < TURNS; turn++) {
		struct uffdio_copy copy = {
			.dst = place(memory, turn),
			.src = (uint64_t)(uintptr_t)ready,
			.len = bytes,
		};
		uint64_t begin_ns = clock_ns();

		if (ioctl(fd, UFFDIO_COPY, &copy) < 0)
			exit(1);
		took_ns[turn] = (uint32_t)(clock_ns() - begin_ns);
	}
	show(name, ", ");
	madvise((void *)(uintptr_t)memory, LENGTH, MADV_DONTNEED);
}

static void zero_pages(int fd, uint64_t memory)
{
	for (unsigned turn = 0; turn < TURNS; turn++) {
		struct uffdio_zeropage zero = {.range = {place(memory, turn), PAGE}};
		uint64_t begin_ns = clock_ns();

		if (ioctl(fd, UFFDIO_ZEROPAGE, &zero) < 0)
			exit(1);
		took_ns[turn] = (uint32_t)(clock_ns() - begin_ns);
	}
	show("zeropage_4k", ", ");
	madvise((void *)(uintptr_t)memory, LENGTH, MADV_DONTNEED);
}

static void polls(int fd)
{
	for (unsigned turn = 0; turn < TURNS; turn++) {
		struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
		uint64_t begin_ns = clock_ns();

		if (poll(&poll_fd, 1, 0) != 0)
			exit(1);
		took_ns[turn] = (uint32_t)(clock_ns() - begin_ns);
	}
	show("poll", ", ");
	for (unsigned turn = 0; turn < TURNS; turn++) {
		struct uffd_msg message;
		uint64_t begin_ns = clock_ns();

		if (read(fd, &message, sizeof(message)) >= 0 || errno != EAGAIN)
			exit(1);
		took_ns[turn] = (uint32_t)(clock_ns() - begin_ns);
	}
	show("read", ", ");
}

int main(void)
{
	int fd = open_uffd();
	void *memory = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct uffdio_register range = {
		.range = {(uint64_t)(uintptr_t)memory, LENGTH},
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	uint64_t start = (uint64_t)(uintptr_t)memory;

	if (memory == MAP_FAILED)
		return 1;
	memset(ready, 'A', sizeof(ready));
	madvise(memory, LENGTH, MADV_NOHUGEPAGE);
	/* The page tables. */
	for (unsigned turn = 0; turn < TURNS; turn++)
		*(volatile uint8_t *)(uintptr_t)(start + turn * PIECE) = 1;
	madvise(memory, LENGTH, MADV_DONTNEED);
	if (ioctl(fd, UFFDIO_REGISTER, &range) < 0)
		return 77;
	printf("{");
	copies(fd, start, PAGE, "copy_4k");
	copies(fd, start, PIECE, "copy_64k");
	zero_pages(fd, start);
	polls(fd);
	for (unsigned turn = 0; turn < TURNS; turn++) {
		uint64_t begin_ns = clock_ns();

		took_ns[turn] = (uint32_t)(clock_ns() - begin_ns);
	}
	show("clock", "}\n");
	return 0;
}
