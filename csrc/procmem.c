#include "procmem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "error.h"

/* ---- /proc/PID/task/TID/stat ---------------------------------------------------------------- */

#define PF_KTHREAD 0x00200000u /* linux/sched.h, not exported */

int lr_procmem_stat(pid_t pid, pid_t tid, struct lr_procmem_stat *ret_stat,
		    struct lr_problem *ret_problem)
{
	char path[64], text[1024];

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", (int)pid, (int)tid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return lr_problem_from_errno(ret_problem, errno == ENOENT ? ESRCH : errno);
	ssize_t got = read(fd, text, sizeof(text) - 1);
	int os_error = errno;
	close(fd);
	if (got <= 0)
		return lr_problem_from_errno(ret_problem, got < 0 ? os_error : ESRCH);
	text[got] = '\0';

	/* The name, in parentheses, may hold anything: the fields are counted from the last ')'. */
	const char *after_name = strrchr(text, ')');
	unsigned int flags;
	unsigned long long start_time;
	if (!after_name
	    || sscanf(after_name + 1,
		      " %c %*d %*d %*d %*d %*d %u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %u %*d "
		      "%llu",
		      &ret_stat->state, &flags, &ret_stat->thread_count, &start_time)
		       != 4)
		return lr_problem_set(ret_problem, LR_ERR_SYSTEM, EPROTO, LR_NOWHERE, LR_NOWHERE);
	ret_stat->is_kernel = flags & PF_KTHREAD;
	ret_stat->start_time = start_time;
	return LR_OK;
}

/* ---- Memory --------------------------------------------------------------------------------- */

/* One system call at a time cannot be interrupted: this keeps each short. */
#define READ_CHUNK_BYTES (8u << 20)

/* As much as /proc/PID/mem gives, which reads what its owner may not (PROT_NONE). 0: nothing at
 * this address. */
static int64_t read_by_file(int fd, uint64_t address, void *ret_data, uint64_t bytes,
			    struct lr_problem *ret_problem)
{
	ssize_t got;

	if (address > INT64_MAX) /* where off_t ends; only the kernel has memory there */
		return 0;
	do {
		got = pread(fd, ret_data, bytes, (off_t)address);
	} while (got < 0 && errno == EINTR);
	if (got > 0)
		return got;
	if (got < 0)
		return errno == EIO || errno == EFAULT ? 0
						       : lr_problem_from_errno(ret_problem, errno);
	/* The end of this file is the end of the process. */
	return lr_problem_from_errno(ret_problem, ESRCH);
}

static int open_mem(int32_t pid, struct lr_problem *ret_problem)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/mem", (int)pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return lr_problem_from_errno(ret_problem, errno == ENOENT ? ESRCH : errno);
	return fd;
}

int lr_process_read(int32_t pid, uint64_t address, void *ret_data, uint64_t bytes,
		    uint64_t *ret_read, struct lr_problem *ret_problem)
{
	int mem_fd = -1, code = LR_OK;
	uint64_t done = 0;

	*ret_read = 0;
	if (pid <= 0 || !ret_data || address + bytes < address)
		return lr_problem_set(ret_problem, LR_ERR_ARGUMENT, 0, LR_NOWHERE, LR_NOWHERE);
	while (done < bytes) {
		uint64_t length = bytes - done < READ_CHUNK_BYTES ? bytes - done : READ_CHUNK_BYTES;
		uint8_t *to = (uint8_t *)ret_data + done;
		struct iovec local = {.iov_base = to, .iov_len = length};
		struct iovec remote = {.iov_base = (void *)(uintptr_t)(address + done),
				       .iov_len = length};
		int64_t got = process_vm_readv(pid, &local, 1, &remote, 1, 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && errno != EFAULT) {
			code = lr_problem_from_errno(ret_problem, errno);
			break;
		}
		if (got <= 0) {
			if (mem_fd < 0)
				mem_fd = open_mem(pid, ret_problem);
			got = mem_fd < 0 ? mem_fd /* the code */
					 : read_by_file(mem_fd, address + done, to, length,
							ret_problem);
		}
		if (got <= 0) {
			code = (int)got;
			break;
		}
		done += (uint64_t)got;
	}
	if (mem_fd >= 0)
		close(mem_fd);
	*ret_read = done;
	return code;
}

/* ---- Which pages exist ---------------------------------------------------------------------- */

struct run_list {
	struct lr_page_run *runs;
	uint32_t count;
	uint32_t room;
};

/* Append a run, merged with the one before where they meet. False: no room. */
static bool add_run(struct run_list *list, uint64_t start, uint64_t end)
{
	if (list->count > 0 && list->runs[list->count - 1].end == start) {
		list->runs[list->count - 1].end = end;
		return true;
	}
	if (list->count == list->room)
		return false;
	list->runs[list->count++] = (struct lr_page_run){.start = start, .end = end};
	return true;
}

static bool range_is_valid(uint64_t start, uint64_t end, uint32_t room)
{
	uint64_t mask = (uint64_t)sysconf(_SC_PAGESIZE) - 1;

	return room > 0 && start <= end && !(start & mask) && !(end & mask);
}

/* What linux/fs.h has since 6.7: these headers may be older than the kernel. */
struct scan_region {
	uint64_t start;
	uint64_t end;
	uint64_t categories;
};

struct scan_argument {
	uint64_t size;
	uint64_t flags;
	uint64_t start;
	uint64_t end;
	uint64_t walk_end;
	uint64_t vec;
	uint64_t vec_len;
	uint64_t max_pages;
	uint64_t category_inverted;
	uint64_t category_mask;
	uint64_t category_anyof_mask;
	uint64_t return_mask;
};

#define SCAN_PRESENT   (1u << 3)
#define SCAN_SWAPPED   (1u << 4)
#define SCAN_IOCTL     _IOWR('f', 16, struct scan_argument)
#define SCAN_REGIONS   256
#define PAGEMAP_EXISTS (3ull << 62) /* bit 63: present, bit 62: in swap */
#define READ_ENTRIES   4096

int64_t lr_procmem_runs_by_scan(int pagemap_fd, uint64_t start, uint64_t end,
				struct lr_page_run *ret_runs, uint32_t room, uint64_t *ret_next,
				struct lr_problem *ret_problem)
{
	struct run_list list = {.runs = ret_runs, .room = room};
	struct scan_region found[SCAN_REGIONS];

	*ret_next = start;
	if (!range_is_valid(start, end, room))
		return lr_problem_set(ret_problem, LR_ERR_ARGUMENT, 0, LR_NOWHERE, LR_NOWHERE);
	while (*ret_next < end) {
		struct scan_argument scan = {
			.size = sizeof(scan),
			.start = *ret_next,
			.end = end,
			.vec = (uintptr_t)found,
			.vec_len = SCAN_REGIONS,
			.category_anyof_mask = SCAN_PRESENT | SCAN_SWAPPED,
			/* Nothing is asked back, so that present and swapped neighbours are one
			   region. */
			.return_mask = 0,
		};
		int got = ioctl(pagemap_fd, SCAN_IOCTL, &scan);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return lr_problem_from_errno(ret_problem, errno);
		for (int i = 0; i < got; i++)
			if (!add_run(&list, found[i].start, found[i].end)) {
				*ret_next = found[i].start;
				return list.count;
			}
		if (scan.walk_end
		    <= *ret_next) /* cannot be; but if it were, this would never end */
			return lr_problem_from_errno(ret_problem, EPROTO);
		*ret_next = scan.walk_end;
	}
	return list.count;
}

int64_t lr_procmem_runs_by_read(int pagemap_fd, uint64_t start, uint64_t end,
				struct lr_page_run *ret_runs, uint32_t room, uint64_t *ret_next,
				struct lr_problem *ret_problem)
{
	struct run_list list = {.runs = ret_runs, .room = room};
	uint64_t page_size = (uint64_t)sysconf(_SC_PAGESIZE), entries[READ_ENTRIES];

	*ret_next = start;
	if (!range_is_valid(start, end, room))
		return lr_problem_set(ret_problem, LR_ERR_ARGUMENT, 0, LR_NOWHERE, LR_NOWHERE);
	while (*ret_next < end) {
		uint64_t pages = (end - *ret_next) / page_size;
		if (pages > READ_ENTRIES)
			pages = READ_ENTRIES;
		ssize_t got = pread(pagemap_fd, entries, pages * sizeof(entries[0]),
				    (off_t)(*ret_next / page_size * sizeof(entries[0])));

		if (got < 0 && errno == EINTR)
			continue;
		if (got < (ssize_t)sizeof(entries[0]))
			return lr_problem_from_errno(ret_problem, got < 0 ? errno : ESRCH);
		pages = (uint64_t)got / sizeof(entries[0]);
		for (uint64_t i = 0; i < pages; i++) {
			uint64_t at = *ret_next + i * page_size;
			if ((entries[i] & PAGEMAP_EXISTS) && !add_run(&list, at, at + page_size)) {
				*ret_next = at;
				return list.count;
			}
		}
		*ret_next += pages * page_size;
	}
	return list.count;
}

int64_t lr_pagemap_runs(int pagemap_fd, uint64_t start, uint64_t end, struct lr_page_run *ret_runs,
			uint32_t room, uint64_t *ret_next, struct lr_problem *ret_problem)
{
	int64_t count = lr_procmem_runs_by_scan(pagemap_fd, start, end, ret_runs, room, ret_next,
						ret_problem);

	/* Only the first call can find out that the kernel is too old: nothing was found before. */
	if (count == LR_ERR_UNSUPPORTED)
		count = lr_procmem_runs_by_read(pagemap_fd, start, end, ret_runs, room, ret_next,
						ret_problem);
	return count;
}
