/* The kernel's promises: fencing pages with UFFDIO_POISON (Linux 6.6), and what is left where it is
 * missing. */
#include "check.h"
#include "kernel.h"

#include <sys/uio.h>

#define PAGES 8
#define BYTES (PAGES * KERNEL_PAGE)

static uint8_t data[BYTES];

/* A registered range without a page, whose kernel can fence; or skip. */
static uint8_t *set_up(int *ret_uffd)
{
	*ret_uffd = kernel_open(KERNEL_FEATURE_POISON);
	uint8_t *memory = kernel_map(PAGES);
	kernel_fill(data, 0, PAGES);
	CHECK_EQ(kernel_register(*ret_uffd, memory, PAGES, NULL), 0);
	return memory;
}

static void a_touch_is_sigbus(void)
{
	int uffd;
	int64_t updated;
	uint8_t *memory = set_up(&uffd);
	CHECK_EQ(kernel_poison(uffd, memory, PAGES, &updated), 0);
	CHECK_EQ(updated, BYTES);
	for (size_t i = 0; i < PAGES; i++) {
		CHECK_EQ(check_touch(memory + i * KERNEL_PAGE, 0), SIGBUS);
		CHECK_EQ(check_touch(memory + i * KERNEL_PAGE, 1), SIGBUS);
	}
	CHECK_EQ(kernel_poll(uffd, 0), 0); /* no message */
}

/* Who handles the SIGBUS learns the address. */
static sigjmp_buf escape;
static siginfo_t caught;

static void catch_signal(int signal_number, siginfo_t *info, void *context)
{
	(void)signal_number, (void)context;
	caught = *info;
	siglongjmp(escape, 1);
}

static void sigbus_tells_the_address(void)
{
	int uffd;
	uint8_t *memory = set_up(&uffd);
	struct sigaction action = {.sa_sigaction = catch_signal, .sa_flags = SA_SIGINFO};
	CHECK_EQ(kernel_poison(uffd, memory, PAGES, NULL), 0);
	CHECK_CALL(sigaction(SIGBUS, &action, NULL));
	if (sigsetjmp(escape, 1) == 0) {
		*(volatile uint8_t *)(memory + KERNEL_PAGE + 5) = 1;
		CHECK_FAIL("the store went through");
	}
	CHECK_EQ((uintptr_t)caught.si_addr / KERNEL_PAGE, (uintptr_t)memory / KERNEL_PAGE + 1);
}

static void system_calls_get_efault_or_stop_short(void)
{
	int uffd, pipes[2];
	uint8_t *memory = set_up(&uffd);
	CHECK_CALL(pipe2(pipes, O_NONBLOCK));
	CHECK_EQ(kernel_copy(uffd, memory, data, 1, NULL), 0);
	CHECK_EQ(kernel_poison(uffd, memory + KERNEL_PAGE, PAGES - 1, NULL), 0);
	CHECK_ERRNO(write(pipes[1], memory + KERNEL_PAGE, 10), EFAULT);
	ssize_t wrote = write(pipes[1], memory, 2 * KERNEL_PAGE);
	CHECK(wrote == (ssize_t)KERNEL_PAGE || (wrote == -1 && errno == EFAULT));
	int zeros = (int)CHECK_CALL(open("/dev/zero", O_RDONLY | O_CLOEXEC));
	CHECK_ERRNO(read(zeros, memory + KERNEL_PAGE, 10), EFAULT);
	ssize_t got = read(zeros, memory, 2 * KERNEL_PAGE);
	CHECK(got == (ssize_t)KERNEL_PAGE || (got == -1 && errno == EFAULT));
	uint8_t buffer[10];
	struct iovec here = {buffer, sizeof(buffer)}, there = {memory + KERNEL_PAGE, 10};
	CHECK_ERRNO(process_vm_readv(getpid(), &here, 1, &there, 1, 0), EFAULT);
}

/* A thread that already waits is woken, and gets the SIGBUS. */
static void a_waiter_gets_sigbus(void)
{
	kernel_open(KERNEL_FEATURE_POISON);
	CHECK_SIGNAL(SIGBUS, {
		struct kernel_toucher toucher;
		struct uffd_msg message;
		int uffd;
		uint8_t *memory = set_up(&uffd);
		kernel_toucher_start(&toucher, memory, 0);
		kernel_read(uffd, &message, 1);
		CHECK_EQ(kernel_poison(uffd, memory, PAGES, NULL), 0);
		kernel_toucher_join(&toucher);
	});
}

static void a_fence_survives_unregister_and_close(void)
{
	int uffd;
	uint8_t *memory = set_up(&uffd);
	CHECK_EQ(kernel_poison(uffd, memory, 2, NULL), 0);
	CHECK_EQ(kernel_unregister(uffd, memory, PAGES), 0);
	CHECK_EQ(check_touch(memory, 0), SIGBUS);
	close(uffd);
	CHECK_EQ(check_touch(memory, 0), SIGBUS);
	CHECK_EQ(memory[2 * KERNEL_PAGE], 0); /* what was not fenced is lost */
}

static void a_fence_survives_fork(void)
{
	int uffd;
	uint8_t *memory = set_up(&uffd);
	CHECK_EQ(kernel_poison(uffd, memory, 2, NULL), 0);
	CHECK_SIGNAL(SIGBUS, check_state->message[0] = (char)*(volatile uint8_t *)memory;);
	/* The parent's end does not lift it. */
	pid_t pid = fork();
	if (pid == 0) {
		close(uffd);
		CHECK_EQ(check_touch(memory, 0), SIGBUS);
		_exit(0);
	}
	CHECK_CHILD(pid);
}

static void a_later_copy_heals(void)
{
	int uffd;
	uint8_t *memory = set_up(&uffd);
	CHECK_EQ(kernel_poison(uffd, memory, PAGES, NULL), 0);
	CHECK_EQ(kernel_copy(uffd, memory, data, PAGES, NULL), 0);
	CHECK_MEM(memory, data, BYTES);
}

static void zeropage_does_not_heal(void)
{
	int uffd;
	int64_t zeroed;
	uint8_t *memory = set_up(&uffd);
	CHECK_EQ(kernel_poison(uffd, memory, PAGES, NULL), 0);
	CHECK_EQ(kernel_zeropage(uffd, memory, 1, &zeroed), EEXIST);
	CHECK_EQ(check_touch(memory, 0), SIGBUS);
	/* A zero page comes by COPY of zeros, or by emptying the page first. */
	CHECK_CALL(madvise(memory, KERNEL_PAGE, MADV_DONTNEED));
	CHECK_EQ(kernel_zeropage(uffd, memory, 1, &zeroed), 0);
	CHECK_EQ(check_touch(memory, 0), 0);
}

/* Pages that are there are not fenced: the same results as of COPY. */
static void a_present_page_is_not_fenced(void)
{
	int uffd;
	int64_t updated;
	uint8_t *memory = set_up(&uffd);
	CHECK_EQ(kernel_copy(uffd, memory + 4 * KERNEL_PAGE, data, 1, NULL), 0);
	CHECK_EQ(kernel_poison(uffd, memory, PAGES, &updated), EAGAIN);
	CHECK_EQ(updated, 4 * KERNEL_PAGE);
	CHECK_EQ(kernel_poison(uffd, memory + 4 * KERNEL_PAGE, 4, &updated), EEXIST);
	CHECK_EQ(kernel_poison(uffd, memory + 5 * KERNEL_PAGE, 3, &updated), 0);
	CHECK_MEM(memory + 4 * KERNEL_PAGE, data, KERNEL_PAGE);
	CHECK_EQ(check_touch(memory + 3 * KERNEL_PAGE, 0), SIGBUS);
	CHECK_EQ(check_touch(memory + 5 * KERNEL_PAGE, 0), SIGBUS);
	/* And it is not fenced twice. */
	CHECK_EQ(kernel_poison(uffd, memory, 1, &updated), EEXIST);
}

static void a_fence_costs_no_memory(void)
{
	int uffd = kernel_open(KERNEL_FEATURE_POISON);
	uint8_t *memory = kernel_map(4096);
	CHECK_EQ(kernel_register(uffd, memory, 4096, NULL), 0);
	CHECK_EQ(kernel_poison(uffd, memory, 4096, NULL), 0);
	CHECK_EQ(kernel_smaps(memory, "Rss:"), 0);
	/* pagemap: in no page frame (bit 63), a swap entry (bit 62) of a kind of its own. */
	CHECK_EQ(kernel_is_present(memory), 0);
	CHECK_NE(kernel_pagemap(memory), 0);
}

/* madvise(MADV_DONTNEED) lifts a fence: the page is missing again. */
static void dontneed_lifts_a_fence(void)
{
	struct kernel_server server;
	int uffd;
	uint8_t *memory = set_up(&uffd);
	CHECK_EQ(kernel_poison(uffd, memory, 1, NULL), 0);
	CHECK_CALL(madvise(memory, KERNEL_PAGE, MADV_DONTNEED));
	kernel_server_start(&server, uffd, memory, PAGES, 0);
	kernel_check_pages(memory, 0, 1);
	kernel_server_stop(&server);
}

/* ---- Without POISON: mprotect -------------------------------------------------------- */

/* PROT_NONE wakes nobody by itself; a woken waiter finds it. It holds after the descriptor is
 * closed. */
static void prot_none_fences_with_sigsegv(void)
{
	close(kernel_open(0));
	CHECK_SIGNAL(SIGSEGV, {
		struct kernel_toucher toucher;
		struct uffd_msg message;
		int uffd = kernel_open(0);
		uint8_t *memory = kernel_map(PAGES);
		CHECK_EQ(kernel_register(uffd, memory, PAGES, NULL), 0);
		kernel_toucher_start(&toucher, memory, 0);
		kernel_read(uffd, &message, 1);
		CHECK_CALL(mprotect(memory, BYTES, PROT_NONE));
		kernel_settle();
		CHECK_EQ(atomic_load(&toucher.done), 0);
		CHECK_EQ(kernel_wake(uffd, memory, PAGES), 0);
		kernel_toucher_join(&toucher);
	});
	int uffd = kernel_open(0);
	uint8_t *memory = kernel_map(PAGES);
	CHECK_EQ(kernel_register(uffd, memory, PAGES, NULL), 0);
	CHECK_CALL(mprotect(memory, KERNEL_PAGE, PROT_NONE));
	close(uffd);
	CHECK_EQ(check_touch(memory, 0), SIGSEGV);
}

static const struct check_case cases[] = {
	CHECK_CASE(a_touch_is_sigbus),
	CHECK_CASE(sigbus_tells_the_address),
	CHECK_CASE(system_calls_get_efault_or_stop_short),
	CHECK_CASE(a_waiter_gets_sigbus),
	CHECK_CASE(a_fence_survives_unregister_and_close),
	CHECK_CASE(a_fence_survives_fork),
	CHECK_CASE(a_later_copy_heals),
	CHECK_CASE(zeropage_does_not_heal),
	CHECK_CASE(a_present_page_is_not_fenced),
	CHECK_CASE(a_fence_costs_no_memory),
	CHECK_CASE(dontneed_lifts_a_fence),
	CHECK_CASE(prot_none_fences_with_sigsegv),
};
CHECK_MAIN(cases)
