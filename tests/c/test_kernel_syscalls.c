/* The kernel's promises: faults inside system calls, of this process and of others, with full
 * rights and without. */
#include "check.h"
#include "kernel.h"

#include <sys/uio.h>

#define PAGES 16
#define BYTES (PAGES * KERNEL_PAGE)

static struct kernel_server server;
static uint8_t expected[BYTES];

/* A range that is served: page p holds kernel_fill(p). */
static uint8_t *set_up(void)
{
	kernel_need_full();
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(PAGES);
	kernel_fill(expected, 0, PAGES);
	CHECK_EQ(kernel_register(uffd, memory, PAGES, NULL), 0);
	kernel_server_start(&server, uffd, memory, PAGES, 0);
	return memory;
}

static void tear_down(long messages)
{
	kernel_server_stop(&server);
	CHECK_EQ(atomic_load(&server.messages), messages);
}

/* A temporary file of BYTES, each 0x5A, opened with these flags besides. */
static int temporary_file(int flags)
{
	char path[] = "/var/tmp/test_kernel.XXXXXX", block[KERNEL_PAGE];
	int fd = (int)CHECK_CALL(mkostemp(path, O_CLOEXEC));
	memset(block, 0x5A, sizeof(block));
	for (size_t i = 0; i < PAGES; i++)
		CHECK_EQ(write(fd, block, sizeof(block)), sizeof(block));
	int again = open(path, O_RDWR | O_CLOEXEC | flags);
	int error = errno;
	unlink(path);
	close(fd);
	if (again == -1)
		SKIP("open with flags %#o: %s", (unsigned)flags, strerror(error));
	return again;
}

static void check_file(int fd)
{
	uint8_t *back = kernel_map(PAGES); /* page-aligned: the file may be O_DIRECT */
	CHECK_EQ(pread(fd, back, BYTES, 0), BYTES);
	CHECK_MEM(back, expected, BYTES);
}

static void write_from_missing_pages(void)
{
	uint8_t *memory = set_up();
	int fd = temporary_file(0);
	CHECK_EQ(pwrite(fd, memory, BYTES, 0), BYTES);
	check_file(fd);
	tear_down(PAGES);
}

static void direct_write_from_missing_pages(void)
{
	uint8_t *memory = set_up();
	int fd = temporary_file(O_DIRECT);
	CHECK_EQ(pwrite(fd, memory, BYTES, 0), BYTES);
	check_file(fd);
	tear_down(PAGES);
}

/* What is read replaces the first and last page in part: the rest of them must have come from the
 * server. */
static void read_into_missing_pages(void)
{
	uint8_t *memory = set_up();
	int fd = temporary_file(0);
	CHECK_EQ(pread(fd, memory + 100, BYTES - 200, 0), BYTES - 200);
	CHECK_MEM(memory, expected, 100);
	CHECK_MEM(memory + BYTES - 100, expected + BYTES - 100, 100);
	CHECK_EQ(memory[100], 0x5A);
	CHECK_EQ(memory[BYTES - 101], 0x5A);
	tear_down(PAGES);
}

static void readv_into_missing_pages(void)
{
	uint8_t *memory = set_up();
	int fd = temporary_file(0);
	struct iovec parts[PAGES];
	for (size_t i = 0; i < PAGES; i++)
		parts[i] = (struct iovec){memory + i * KERNEL_PAGE + 1, 10};
	CHECK_EQ(readv(fd, parts, PAGES), PAGES * 10);
	for (size_t i = 0; i < PAGES; i++) {
		const uint8_t *page = memory + i * KERNEL_PAGE;
		CHECK_EQ(page[0], expected[i * KERNEL_PAGE]);
		CHECK_EQ(page[1], 0x5A);
		CHECK_MEM(page + 11, expected + i * KERNEL_PAGE + 11, KERNEL_PAGE - 11);
	}
	tear_down(PAGES);
}

static void another_process_reads_missing_pages(void)
{
	uint8_t *memory = set_up();
	pid_t owner = getpid(), pid;
	if (prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY) == -1 && errno != EINVAL)
		SKIP("PR_SET_PTRACER: %s", strerror(errno));
	pid = fork();
	if (pid == 0) {
		static uint8_t got[BYTES];
		struct iovec here = {got, BYTES}, there = {memory, BYTES};
		ssize_t bytes = process_vm_readv(owner, &here, 1, &there, 1, 0);
		if (bytes == -1 && (errno == EPERM || errno == ENOSYS))
			SKIP("process_vm_readv: %s", strerror(errno));
		CHECK_EQ(bytes, BYTES);
		CHECK_MEM(got, expected, BYTES);
		_exit(0);
	}
	CHECK_CHILD(pid);
	tear_down(PAGES);
}

static void mlock_and_populate_load_pages(void)
{
	uint8_t *memory = set_up();
	/* Not mlock(): the sanitizers make that do nothing. */
	CHECK_CALL(syscall(SYS_mlock, memory, 2 * KERNEL_PAGE));
	CHECK_EQ(atomic_load(&server.messages), 2);
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
	if (madvise(memory, 4 * KERNEL_PAGE, MADV_POPULATE_READ) == -1)
		SKIP("MADV_POPULATE_READ: %s", strerror(errno));
	CHECK_EQ(atomic_load(&server.messages), 4);
	kernel_check_pages(memory, 0, 4);
	tear_down(4);
}

/* A debugger's way does not wait: it gives an error, not zeros. Dumping must not rely on it. */
static void proc_mem_gives_eio(void)
{
	uint8_t *memory = set_up(), got[16];
	int fd = (int)CHECK_CALL(open("/proc/self/mem", O_RDONLY | O_CLOEXEC));
	CHECK_ERRNO(pread(fd, got, sizeof(got), (off_t)(uintptr_t)memory), EIO);
	CHECK_EQ(memory[0], expected[0]);
	CHECK_EQ(pread(fd, got, sizeof(got), (off_t)(uintptr_t)memory), sizeof(got));
	CHECK_MEM(got, expected, sizeof(got));
	tear_down(1);
}

/* ---- User mode only ------------------------------------------------------------------ */

static uint8_t *set_up_user_mode(void)
{
	int uffd = kernel_try_syscall(O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (uffd == -1)
		SKIP("UFFD_USER_MODE_ONLY: %s", strerror(errno));
	struct uffdio_api api = {.api = UFFD_API};
	uint8_t *memory = kernel_map(PAGES);
	kernel_fill(expected, 0, PAGES);
	CHECK_CALL(ioctl(uffd, UFFDIO_API, &api));
	CHECK_EQ(kernel_register(uffd, memory, PAGES, NULL), 0);
	kernel_server_start(&server, uffd, memory, PAGES, 0);
	return memory;
}

static void user_mode_serves_loads_and_stores(void)
{
	uint8_t *memory = set_up_user_mode();
	kernel_check_pages(memory, 0, PAGES / 2);
	memory[BYTES - 1] = 1;
	CHECK_EQ(memory[BYTES - 2], expected[BYTES - 2]);
	tear_down(PAGES / 2 + 1);
}

static void user_mode_fails_system_calls(void)
{
	uint8_t *memory = set_up_user_mode();
	int fd = temporary_file(0);
	CHECK_ERRNO(pread(fd, memory, BYTES, 0), EFAULT);
	CHECK_ERRNO(pwrite(fd, memory, BYTES, 0), EFAULT);
	tear_down(0);
}

/* The dangerous one: no error, only fewer bytes than were asked for. */
static void user_mode_shortens_system_calls(void)
{
	uint8_t *memory = set_up_user_mode();
	int fd = temporary_file(0);
	CHECK_EQ(memory[0], expected[0]);
	CHECK_EQ(pread(fd, memory, BYTES, 0), KERNEL_PAGE);
	tear_down(1);
}

static void user_mode_serves_system_calls_once_loaded(void)
{
	uint8_t *memory = set_up_user_mode();
	int fd = temporary_file(0);
	for (size_t i = 0; i < PAGES; i++)
		CHECK_EQ(memory[i * KERNEL_PAGE], expected[i * KERNEL_PAGE]);
	CHECK_EQ(pwrite(fd, memory, BYTES, 0), BYTES);
	check_file(fd);
	tear_down(PAGES);
}

static const struct check_case cases[] = {
	CHECK_CASE(write_from_missing_pages),
	CHECK_CASE(direct_write_from_missing_pages),
	CHECK_CASE(read_into_missing_pages),
	CHECK_CASE(readv_into_missing_pages),
	CHECK_CASE(another_process_reads_missing_pages),
	CHECK_CASE(mlock_and_populate_load_pages),
	CHECK_CASE(proc_mem_gives_eio),
	CHECK_CASE(user_mode_serves_loads_and_stores),
	CHECK_CASE(user_mode_fails_system_calls),
	CHECK_CASE(user_mode_shortens_system_calls),
	CHECK_CASE(user_mode_serves_system_calls_once_loaded),
};
CHECK_MAIN(cases)
