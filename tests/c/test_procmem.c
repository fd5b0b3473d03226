/* Reading another process: its memory, and which of its pages exist. */
#include "check.h"

#include <fcntl.h>

#include "procmem.h"

#define PAGE 4096u

/* A child that has what was mapped before the fork, and waits to be killed. */
static pid_t start_target(void)
{
	pid_t pid = (pid_t)CHECK_CALL(fork());

	if (pid == 0)
		for (;;)
			pause();
	return pid;
}

static void end_target(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static uint8_t *map(size_t bytes, int protection)
{
	uint8_t *memory =
		mmap(NULL, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	CHECK(memory != MAP_FAILED);
	return memory;
}

static void fill(uint8_t *memory, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++)
		memory[i] = (uint8_t)(i * 31 + i / PAGE);
}

/* ---- lr_process_read ------------------------------------------------------------------------ */

static void read_is_exact(void)
{
	size_t bytes = 20u << 20; /* several chunks */
	uint8_t *memory = map(bytes, PROT_READ | PROT_WRITE), *copy = malloc(bytes);
	uint64_t got;

	fill(memory, bytes);
	pid_t pid = start_target();
	CHECK_EQ(lr_process_read(pid, (uintptr_t)memory, copy, bytes, &got, NULL), LR_OK);
	CHECK_EQ(got, bytes);
	CHECK_MEM(copy, memory, bytes);
	/* At no boundary, of no round length. */
	CHECK_EQ(lr_process_read(pid, (uintptr_t)memory + 4095, copy, 5003, &got, NULL), LR_OK);
	CHECK_EQ(got, 5003);
	CHECK_MEM(copy, memory + 4095, 5003);
	CHECK_EQ(lr_process_read(pid, (uintptr_t)memory, copy, 0, &got, NULL), LR_OK);
	CHECK_EQ(got, 0);
	end_target(pid);
	free(copy);
}

static void read_stops_at_unmapped(void)
{
	uint8_t *memory = map(8 * PAGE, PROT_READ | PROT_WRITE), copy[8 * PAGE];
	uint64_t got;

	fill(memory, 8 * PAGE);
	munmap(memory + 5 * PAGE, PAGE);
	pid_t pid = start_target();
	CHECK_EQ(lr_process_read(pid, (uintptr_t)memory, copy, sizeof(copy), &got, NULL), LR_OK);
	CHECK_EQ(got, 5 * PAGE);
	CHECK_MEM(copy, memory, 5 * PAGE);
	CHECK_EQ(lr_process_read(pid, (uintptr_t)memory + 5 * PAGE, copy, PAGE, &got, NULL), LR_OK);
	CHECK_EQ(got, 0);
	CHECK_EQ(lr_process_read(pid, (uintptr_t)memory + 6 * PAGE, copy, PAGE, &got, NULL), LR_OK);
	CHECK_EQ(got, PAGE);
	end_target(pid);
}

static void read_passes_no_access(void)
{
	uint8_t *memory = map(9 * PAGE, PROT_READ | PROT_WRITE), expected[9 * PAGE], copy[9 * PAGE];
	uint64_t got;

	fill(memory, sizeof(expected));
	memcpy(expected, memory, sizeof(expected));
	CHECK_CALL(mprotect(memory + 3 * PAGE, 2 * PAGE, PROT_NONE));
	CHECK_CALL(mprotect(memory + 8 * PAGE, PAGE, PROT_NONE));
	pid_t pid = start_target();
	CHECK_EQ(lr_process_read(pid, (uintptr_t)memory, copy, sizeof(copy), &got, NULL), LR_OK);
	CHECK_EQ(got, sizeof(copy));
	CHECK_MEM(copy, expected, sizeof(copy));
	end_target(pid);
}

static void read_stops_behind_end_of_file(void)
{
	char path[] = "/tmp/test_procmem.XXXXXX";
	int fd = (int)CHECK_CALL(mkstemp(path));
	uint8_t copy[4 * PAGE];
	uint64_t got;

	unlink(path);
	CHECK_CALL(pwrite(fd, "end", 3, PAGE));
	uint8_t *memory = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(memory != MAP_FAILED);
	pid_t pid = start_target();
	CHECK_EQ(lr_process_read(pid, (uintptr_t)memory, copy, sizeof(copy), &got, NULL), LR_OK);
	CHECK_EQ(got, 2 * PAGE);
	CHECK_STR((const char *)copy + PAGE, "end");
	end_target(pid);
}

static void read_refuses(void)
{
	uint8_t byte;
	uint64_t got;
	struct lr_problem problem;

	CHECK_EQ(lr_process_read(0, 0, &byte, 1, &got, &problem), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_process_read(1, UINT64_MAX - 1, &byte, 8, &got, NULL), LR_ERR_ARGUMENT);
	pid_t pid = start_target();
	end_target(pid);
	CHECK_EQ(lr_process_read(pid, PAGE, &byte, 1, &got, &problem), LR_ERR_GONE);
	CHECK_EQ(problem.os_error, ESRCH);
}

static void read_of_others_is_refused(void)
{
	static uint8_t byte = 7;

	if (getuid() != 0)
		SKIP("needs root, to become somebody else");
	pid_t target = start_target(), reader = (pid_t)CHECK_CALL(fork());
	if (reader == 0) {
		uint8_t copy;
		uint64_t got;
		CHECK_CALL(setuid(65534));
		CHECK_EQ(lr_process_read(target, (uintptr_t)&byte, &copy, 1, &got, NULL),
			 LR_ERR_PERMISSION);
		CHECK_EQ(got, 0);
		_exit(0);
	}
	CHECK_CHILD(reader);
	end_target(target);
}

/* ---- lr_pagemap_runs ------------------------------------------------------------------------ */

typedef int64_t (*runs_function)(int, uint64_t, uint64_t, struct lr_page_run *, uint32_t,
				 uint64_t *, struct lr_problem *);

static int open_pagemap(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
	return (int)CHECK_CALL(open(path, O_RDONLY | O_CLOEXEC));
}

static void need_scan(void)
{
	uint64_t next;
	struct lr_page_run run;
	int fd = open_pagemap(getpid());

	if (lr_procmem_runs_by_scan(fd, 0, PAGE, &run, 1, &next, NULL) == LR_ERR_UNSUPPORTED)
		SKIP("this kernel has no PAGEMAP_SCAN (before 6.7)");
	close(fd);
}

/* Without huge pages, which would make neighbours present. */
static uint8_t *map_small(size_t pages)
{
	uint8_t *memory = map(pages * PAGE, PROT_READ | PROT_WRITE);

	madvise(memory, pages * PAGE, MADV_NOHUGEPAGE);
	return memory;
}

static void find_few(runs_function runs_of)
{
	uint8_t *memory = map_small(64);
	const int touched[] = {0, 1, 5, 63};
	uint64_t base = (uintptr_t)memory, next;
	struct lr_page_run runs[8];

	for (size_t i = 0; i < 4; i++)
		memory[touched[i] * (size_t)PAGE + 17] = 1;
	pid_t pid = start_target();
	int fd = open_pagemap(pid);
	CHECK_EQ(runs_of(fd, base, base + 64 * PAGE, runs, 8, &next, NULL), 3);
	CHECK_EQ(next, base + 64 * PAGE);
	CHECK_EQ(runs[0].start, base);
	CHECK_EQ(runs[0].end, base + 2 * PAGE);
	CHECK_EQ(runs[1].start, base + 5 * PAGE);
	CHECK_EQ(runs[1].end, base + 6 * PAGE);
	CHECK_EQ(runs[2].start, base + 63 * PAGE);
	CHECK_EQ(runs[2].end, base + 64 * PAGE);

	/* A part that begins and ends in runs. */
	CHECK_EQ(runs_of(fd, base + PAGE, base + 6 * PAGE, runs, 8, &next, NULL), 2);
	CHECK_EQ(runs[0].start, base + PAGE);
	CHECK_EQ(runs[1].end, base + 6 * PAGE);
	CHECK_EQ(runs_of(fd, base + 6 * PAGE, base + 63 * PAGE, runs, 8, &next, NULL), 0);
	CHECK_EQ(next, base + 63 * PAGE);
	CHECK_EQ(runs_of(fd, base, base, runs, 8, &next, NULL), 0);
	end_target(pid);
}

static void find_few_by_scan(void)
{
	need_scan();
	find_few(lr_procmem_runs_by_scan);
}

static void find_few_by_read(void)
{
	find_few(lr_procmem_runs_by_read);
}

/* Every other page, and a long run at the end, fetched in pieces of `room`. */
static void find_many(runs_function runs_of, uint32_t room)
{
	enum { ALTERNATE = 3000, LONG = 9001 };
	uint8_t *memory = map_small(ALTERNATE + LONG);
	uint64_t base = (uintptr_t)memory, at = base,
		 end = base + (uint64_t)(ALTERNATE + LONG) * PAGE;
	struct lr_page_run runs[3000];
	uint64_t seen = 0, last_end = 0;

	for (size_t i = 0; i < ALTERNATE + LONG; i++)
		if (i >= ALTERNATE || i % 2 == 0)
			memory[i * PAGE] = 1;
	pid_t pid = start_target();
	int fd = open_pagemap(pid);
	while (at < end) {
		uint64_t next;
		int64_t count = runs_of(fd, at, end, runs, room, &next, NULL);

		CHECK(count >= 0 && count <= room);
		CHECK(next > at);
		for (int64_t i = 0; i < count; i++, seen++) {
			CHECK(runs[i].start >= at && runs[i].end <= next);
			CHECK(runs[i].start > last_end); /* merged with its neighbour */
			last_end = runs[i].end;
			CHECK_EQ(runs[i].start, base + 2 * seen * PAGE);
			CHECK_EQ(runs[i].end, seen < ALTERNATE / 2 ? runs[i].start + PAGE : end);
		}
		at = next;
	}
	CHECK_EQ(seen, ALTERNATE / 2 + 1);
	end_target(pid);
}

static void find_many_by_scan(void)
{
	need_scan();
	find_many(lr_procmem_runs_by_scan, 3000);
	find_many(lr_procmem_runs_by_scan, 1);
	find_many(lr_procmem_runs_by_scan, 257);
}

static void find_many_by_read(void)
{
	find_many(lr_procmem_runs_by_read, 3000);
	find_many(lr_procmem_runs_by_read, 1);
	find_many(lr_procmem_runs_by_read, 257);
}

static void find_many_either_way(void)
{
	find_many(lr_pagemap_runs, 100);
}

static void find_crosses_mappings(void)
{
	uint8_t *memory = map_small(16);
	uint64_t base = (uintptr_t)memory, next;
	struct lr_page_run runs[4];

	memset(memory, 1, 16 * PAGE);
	CHECK_CALL(mprotect(memory + 4 * PAGE, 4 * PAGE, PROT_READ));
	CHECK_CALL(munmap(memory + 12 * PAGE, PAGE));
	pid_t pid = start_target();
	int fd = open_pagemap(pid);
	for (int by_read = 0; by_read < 2; by_read++) {
		runs_function runs_of = by_read ? lr_procmem_runs_by_read : lr_pagemap_runs;
		CHECK_EQ(runs_of(fd, base, base + 16 * PAGE, runs, 4, &next, NULL), 2);
		CHECK_EQ(runs[0].start, base);
		CHECK_EQ(runs[0].end, base + 12 * PAGE);
		CHECK_EQ(runs[1].start, base + 13 * PAGE);
		CHECK_EQ(runs[1].end, base + 16 * PAGE);
	}
	end_target(pid);
}

static void find_refuses(void)
{
	struct lr_page_run run;
	uint64_t next;
	int fd = open_pagemap(getpid());

	CHECK_EQ(lr_pagemap_runs(fd, 1, PAGE, &run, 1, &next, NULL), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_pagemap_runs(fd, 0, PAGE + 1, &run, 1, &next, NULL), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_pagemap_runs(fd, PAGE, 0, &run, 1, &next, NULL), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_pagemap_runs(fd, 0, PAGE, &run, 0, &next, NULL), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_procmem_runs_by_read(fd, 1, PAGE, &run, 1, &next, NULL), LR_ERR_ARGUMENT);
	CHECK(lr_pagemap_runs(-1, 0, PAGE, &run, 1, &next, NULL) < 0);
}

/* Why a dump looks at lr_freeze_check after each call: nothing exists any more, and that may be no
 * error. */
static void find_after_the_end(void)
{
	uint8_t *memory = map_small(4);
	uint64_t base = (uintptr_t)memory, next;
	struct lr_page_run run;

	memory[0] = 1;
	pid_t pid = start_target();
	int fd = open_pagemap(pid);
	end_target(pid);
	CHECK_EQ(lr_procmem_runs_by_read(fd, base, base + 4 * PAGE, &run, 1, &next, NULL),
		 LR_ERR_GONE);
	CHECK(lr_pagemap_runs(fd, base, base + 4 * PAGE, &run, 1, &next, NULL) <= 0);
}

/* ---- lr_procmem_stat ------------------------------------------------------------------------ */

static void stat_reads_odd_names(void)
{
	struct lr_procmem_stat mine, stat;

	CHECK_EQ(lr_procmem_stat(getpid(), getpid(), &mine, NULL), LR_OK);
	CHECK_EQ(mine.state, 'R');
	CHECK(!mine.is_kernel);
	CHECK(mine.start_time > 0);
	CHECK_CALL(prctl(PR_SET_NAME, ") Z 1 (x"));
	CHECK_EQ(lr_procmem_stat(getpid(), getpid(), &stat, NULL), LR_OK);
	CHECK_EQ(stat.state, 'R');
	CHECK_EQ(stat.start_time, mine.start_time);
	pid_t pid = start_target();
	end_target(pid);
	CHECK_EQ(lr_procmem_stat(pid, pid, &stat, NULL), LR_ERR_GONE);
}

static const struct check_case cases[] = {
	CHECK_CASE(read_is_exact),         CHECK_CASE(read_stops_at_unmapped),
	CHECK_CASE(read_passes_no_access), CHECK_CASE(read_stops_behind_end_of_file),
	CHECK_CASE(read_refuses),          CHECK_CASE(read_of_others_is_refused),
	CHECK_CASE(find_few_by_scan),      CHECK_CASE(find_few_by_read),
	CHECK_CASE(find_many_by_scan),     CHECK_CASE(find_many_by_read),
	CHECK_CASE(find_many_either_way),  CHECK_CASE(find_crosses_mappings),
	CHECK_CASE(find_refuses),          CHECK_CASE(find_after_the_end),
	CHECK_CASE(stat_reads_odd_names),
};

CHECK_MAIN(cases)
