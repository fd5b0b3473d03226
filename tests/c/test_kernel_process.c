/* The kernel's promises: fork, exec, and moving memory about. */
#include "check.h"
#include "kernel.h"

#define PAGES 4

static uint8_t *set_up(struct kernel_server *server)
{
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(PAGES);
	CHECK_EQ(kernel_register(uffd, memory, PAGES, NULL), 0);
	kernel_server_start(server, uffd, memory, PAGES, 0);
	return memory;
}

/* The hazard: the child keeps what was loaded, and reads zeros for what was not. */
static void a_forked_child_reads_zeros(void)
{
	struct kernel_server server;
	uint8_t *memory = set_up(&server);
	kernel_check_pages(memory, 0, 1);
	pid_t pid = fork();
	if (pid == 0) {
		kernel_check_pages(memory, 0, 1);
		CHECK(kernel_is_zero(memory + KERNEL_PAGE, (PAGES - 1) * KERNEL_PAGE));
		_exit(0);
	}
	CHECK_CHILD(pid);
	/* The parent goes on as before. */
	kernel_check_pages(memory, 0, PAGES);
	kernel_server_stop(&server);
}

/* With MADV_DONTFORK it gets SIGSEGV instead, and that is a way out of the hazard. */
static void a_dontfork_child_gets_sigsegv(void)
{
	struct kernel_server server;
	uint8_t *memory = set_up(&server);
	CHECK_CALL(madvise(memory, PAGES * KERNEL_PAGE, MADV_DONTFORK));
	kernel_check_pages(memory, 0, 1);
	CHECK_SIGNAL(SIGSEGV, check_state->message[0] = (char)*(volatile uint8_t *)memory;);
	CHECK_SIGNAL(SIGSEGV,
		     check_state->message[0] = (char)*(volatile uint8_t *)(memory + KERNEL_PAGE););
	kernel_check_pages(memory, 0, PAGES);
	kernel_server_stop(&server);
}

/* The flag covers the whole mapping, so setting it splits nothing: a COPY over all of it still
 * works. */
static void dontfork_splits_nothing(void)
{
	static uint8_t data[PAGES * KERNEL_PAGE];
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(PAGES);
	CHECK_CALL(madvise(memory, PAGES * KERNEL_PAGE, MADV_DONTFORK));
	CHECK_EQ(kernel_register(uffd, memory, PAGES, NULL), 0);
	CHECK_CALL(madvise(memory, PAGES * KERNEL_PAGE, MADV_DOFORK));
	CHECK_CALL(madvise(memory, PAGES * KERNEL_PAGE, MADV_DONTFORK));
	kernel_fill(data, 0, PAGES);
	CHECK_EQ(kernel_copy(uffd, memory, data, PAGES, NULL), 0);
	CHECK_MEM(memory, data, sizeof(data));
}

/* The child's copy of the descriptor speaks of the parent's memory: the child must not use it for
 * its own. */
static void a_childs_descriptor_fills_the_parent(void)
{
	static uint8_t data[KERNEL_PAGE];
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(PAGES);
	CHECK_EQ(kernel_register(uffd, memory, PAGES, NULL), 0);
	kernel_fill(data, 5, 1);
	pid_t pid = fork();
	if (pid == 0) {
		CHECK_EQ(kernel_copy(uffd, memory, data, 1, NULL), 0);
		CHECK(kernel_is_zero(memory, KERNEL_PAGE));
		_exit(0);
	}
	CHECK_CHILD(pid);
	CHECK_MEM(memory, data, KERNEL_PAGE);
}

/* A child can make a userfaultfd of its own for the range that it inherited. */
static void a_child_can_register_anew(void)
{
#ifdef __SANITIZE_THREAD__
	SKIP("ThreadSanitizer allows no threads in the child of a process with threads");
#endif
	struct kernel_server server;
	uint8_t *memory = set_up(&server);
	kernel_check_pages(memory, 0, 1);
	pid_t pid = fork();
	if (pid == 0) {
		struct kernel_server own;
		int uffd = kernel_open(0);
		CHECK_EQ(kernel_register(uffd, memory, PAGES, NULL), 0);
		kernel_server_start(&own, uffd, memory, PAGES, 0);
		kernel_check_pages(memory, 0, PAGES);
		CHECK_EQ(atomic_load(&own.messages), PAGES - 1);
		kernel_server_stop(&own);
		_exit(0);
	}
	CHECK_CHILD(pid);
	kernel_check_pages(memory, 0, PAGES);
	kernel_server_stop(&server);
}

/* ESRCH: who keeps the descriptor of a process that ended. */
static void a_dead_process_is_esrch(void)
{
	static uint8_t data[KERNEL_PAGE];
	uint8_t *memory = kernel_map(1);
	int ends[2];
	char byte;
	CHECK_CALL(pipe(ends));
	int uffd = -1;
	/* The child registers, this process keeps a copy that it takes from the child's table. */
	pid_t pid = fork();
	if (pid == 0) {
		uffd = kernel_open(0);
		CHECK_EQ(kernel_register(uffd, memory, 1, NULL), 0);
		CHECK_EQ(write(ends[1], &uffd, sizeof(uffd)), sizeof(uffd));
		for (;;)
			pause();
	}
	close(ends[1]);
	int theirs;
	if (read(ends[0], &theirs, sizeof(theirs)) != sizeof(theirs)) {
		CHECK_CHILD(pid); /* it skipped or failed, and said why */
		CHECK_FAIL("the child said nothing");
	}
	int pidfd = (int)CHECK_CALL(syscall(SYS_pidfd_open, pid, 0));
	uffd = (int)syscall(SYS_pidfd_getfd, pidfd, theirs, 0);
	if (uffd == -1)
		SKIP("pidfd_getfd: %s", strerror(errno));
	CHECK_CALL(kill(pid, SIGKILL));
	CHECK_CALL(waitpid(pid, NULL, 0));
	CHECK_EQ(read(ends[0], &byte, 1), 0);
	int error = kernel_copy(uffd, memory, data, 1, NULL);
	CHECK(error == ESRCH || error == ENOSPC);
	error = kernel_zeropage(uffd, memory, 1, NULL);
	CHECK(error == ESRCH || error == ENOSPC);
	CHECK_EQ(kernel_poll(uffd, 0), 0); /* the descriptor itself does not tell */
}

static void exec_closes_it(void)
{
	int uffd = kernel_open(0);
	char path[64];
	pid_t pid = fork();
	if (pid == 0) {
		snprintf(path, sizeof(path), "! test -e /proc/self/fd/%d", uffd);
		execl("/bin/sh", "sh", "-c", path, (char *)NULL);
		_exit(127);
	}
	CHECK_CHILD(pid);
}

/* mremap without EVENT_REMAP: the new address reads zeros. */
static void moved_memory_reads_zeros(void)
{
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(PAGES), *target = kernel_map(PAGES), data[KERNEL_PAGE];
	CHECK_EQ(kernel_register(uffd, memory, PAGES, NULL), 0);
	kernel_fill(data, 0, 1);
	CHECK_EQ(kernel_copy(uffd, memory, data, 1, NULL), 0);
	CHECK(mremap(memory, PAGES * KERNEL_PAGE, PAGES * KERNEL_PAGE,
		     MREMAP_MAYMOVE | MREMAP_FIXED, target)
	      == target);
	CHECK_MEM(target, data, KERNEL_PAGE); /* what was loaded moves along */
	CHECK(kernel_is_zero(target + KERNEL_PAGE, (PAGES - 1) * KERNEL_PAGE));
	CHECK_EQ(kernel_poll(uffd, 0), 0);
}

/* Memory that is unmapped and mapped again at the same address is not registered: it reads zeros,
 * and no COPY lands. */
static void a_new_mapping_is_not_registered(void)
{
	static uint8_t data[KERNEL_PAGE] = {1};
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(PAGES);
	CHECK_EQ(kernel_register(uffd, memory, PAGES, NULL), 0);
	CHECK_CALL(munmap(memory, PAGES * KERNEL_PAGE));
	CHECK(mmap(memory, PAGES * KERNEL_PAGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0)
	      == memory);
	CHECK_EQ(memory[0], 0);
	CHECK_EQ(kernel_copy(uffd, memory + KERNEL_PAGE, data, 1, NULL), ENOENT);
	/* But if it is registered again, by whomever, a late COPY of the first owner lands: detach
	 * before unmapping. */
	int other = kernel_open(0);
	CHECK_EQ(kernel_register(other, memory, PAGES, NULL), 0);
	CHECK_EQ(kernel_copy(uffd, memory + KERNEL_PAGE, data, 1, NULL), 0);
	CHECK_EQ(memory[KERNEL_PAGE], 1);
}

static const struct check_case cases[] = {
	CHECK_CASE(a_forked_child_reads_zeros),
	CHECK_CASE(a_dontfork_child_gets_sigsegv),
	CHECK_CASE(dontfork_splits_nothing),
	CHECK_CASE(a_childs_descriptor_fills_the_parent),
	CHECK_CASE(a_child_can_register_anew),
	CHECK_CASE(a_dead_process_is_esrch),
	CHECK_CASE(exec_closes_it),
	CHECK_CASE(moved_memory_reads_zeros),
	CHECK_CASE(a_new_mapping_is_not_registered),
};
CHECK_MAIN(cases)
