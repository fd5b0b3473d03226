/* The kernel's promises: what it tells of memory that its owner gives up (EVENT_REMOVE), in which
 * order, who waits for whom, and what it does not tell. */
#include "check.h"
#include "kernel_events.h"

/* ---- REMOVE -------------------------------------------------------------------------- */

static void a_remove_is_told_before_it_happens(void)
{
	struct caller caller;
	set_up();
	start_madvise(&caller, 1, 2, MADV_DONTNEED);
	wait_for_event(&caller);
	CHECK_MEM(memory, data, PAGES / 2 * KERNEL_PAGE);
	read_range(UFFD_EVENT_REMOVE, page(1), 2);
	join_call(&caller);
	for (size_t i = 0; i < PAGES / 2; i++)
		CHECK_EQ(kernel_is_present(page(i)), i == 0 || i == 3);
	check_served(page(1));
}

static void madvise_free_is_told_too(void)
{
	struct caller caller;
	set_up();
	start_madvise(&caller, 0, PAGES, MADV_FREE);
	wait_for_event(&caller);
	read_range(UFFD_EVENT_REMOVE, page(0), PAGES);
	join_call(&caller);
	CHECK_EQ(kernel_is_present(page(0)), 1); /* until the kernel wants it */
	check_served(page(PAGES - 1));
}

/* Only a whole page is ever given up, and all of them are told of, there or not. */
static void a_remove_of_missing_pages_is_told(void)
{
	struct caller caller;
	set_up();
	start_call(&caller, SYS_madvise, page(6), KERNEL_PAGE + 1, MADV_DONTNEED, 0, NULL);
	wait_for_event(&caller);
	read_range(UFFD_EVENT_REMOVE, page(6), 2);
	join_call(&caller);
}

/* Until the event is read, and its sender has gone on, nothing can be put anywhere. */
static void nothing_is_installed_while_an_event_waits(void)
{
	struct caller caller;
	int64_t done;
	set_up();
	start_madvise(&caller, 0, 1, MADV_DONTNEED);
	wait_for_event(&caller);
	for (int i = 0; i < 1000; i++)
		CHECK_EQ(kernel_copy(uffd, page(6), data, 1, NULL), EAGAIN);
	/* Older kernels (6.1 among them) leave the field as it was. */
	CHECK_EQ(kernel_copy(uffd, page(6), data, 1, &done), EAGAIN);
	CHECK(done == -EAGAIN || done == KERNEL_UNTOUCHED);
	CHECK_EQ(kernel_zeropage(uffd, page(6), 1, &done), EAGAIN);
	CHECK(done == -EAGAIN || done == KERNEL_UNTOUCHED);
	if (kernel_features() & KERNEL_FEATURE_POISON)
		CHECK_EQ(kernel_poison(uffd, page(6), 1, NULL), EAGAIN);
	CHECK_EQ(kernel_wake(uffd, page(6), 1), 0); /* waking goes on */
	read_range(UFFD_EVENT_REMOVE, page(0), 1);
	int error;
	while ((error = kernel_copy(uffd, page(6), data, 1, NULL)) == EAGAIN)
		sched_yield();
	CHECK_EQ(error, 0);
	join_call(&caller);
}

/* A second userfaultfd of the same process is not held up: each has its own queue. */
static void another_descriptor_is_not_held_up(void)
{
	struct caller caller;
	set_up();
	int other = kernel_open(EVENTS);
	uint8_t *elsewhere = kernel_map(1);
	CHECK_EQ(kernel_register(other, elsewhere, 1, NULL), 0);
	start_madvise(&caller, 0, 1, MADV_DONTNEED);
	wait_for_event(&caller);
	CHECK_EQ(kernel_copy(other, elsewhere, data, 1, NULL), 0);
	read_range(UFFD_EVENT_REMOVE, page(0), 1);
	join_call(&caller);
}

/* A range over several mappings is several events, each when the one before it is done. */
static void each_mapping_is_told_by_itself(void)
{
	struct caller caller;
	set_up();
	CHECK_CALL(mprotect(page(2), 2 * KERNEL_PAGE, PROT_READ));
	start_madvise(&caller, 1, 6, MADV_DONTNEED);
	wait_for_event(&caller);
	read_range(UFFD_EVENT_REMOVE, page(1), 1);
	read_range(UFFD_EVENT_REMOVE, page(2), 2);
	read_range(UFFD_EVENT_REMOVE, page(4), 3);
	join_call(&caller);
	CHECK_EQ(kernel_is_present(page(0)), 1);
	CHECK_EQ(kernel_is_present(page(1)) + kernel_is_present(page(2)), 0);
}

/* Also those that came later: whoever serves them must read on when a COPY says EAGAIN. */
static void faults_are_read_before_events(void)
{
	struct kernel_toucher toucher;
	struct caller caller;
	struct uffd_msg messages[2];
	set_up();
	start_madvise(&caller, 0, PAGES, MADV_DONTNEED);
	wait_for_event(&caller);
	kernel_toucher_start(&toucher, page(7), 0);
	kernel_toucher_wait_asleep(&toucher);
	CHECK_EQ(read(uffd, messages, sizeof(messages)), sizeof(messages));
	CHECK_EQ(messages[0].event, UFFD_EVENT_PAGEFAULT);
	CHECK_EQ(messages[1].event, UFFD_EVENT_REMOVE);
	join_call(&caller);
	/* The fault waits still, and was not asked for again. */
	CHECK_EQ(kernel_poll(uffd, 0), 0);
	CHECK_EQ(kernel_zeropage(uffd, page(7), 1, NULL), 0);
	CHECK_EQ(kernel_toucher_join(&toucher), 0);
}

/* What is installed between the reading of an event and the removal may be removed with the rest:
 * it is missing then, and asked for again. Never is it left over, zeros or not, unnoticed. */
static void a_copy_that_races_a_remove_stays_or_goes_whole(void)
{
	struct caller caller;
	set_up();
	for (int i = 0; i < 200; i++) {
		start_madvise(&caller, 5, 1, MADV_DONTNEED);
		read_range(UFFD_EVENT_REMOVE, page(5), 1);
		int error;
		while ((error = kernel_copy(uffd, page(5), data, 1, NULL)) == EAGAIN)
			sched_yield();
		CHECK(error == 0 || error == EEXIST);
		join_call(&caller);
		if (kernel_is_present(page(5)))
			CHECK_MEM(page(5), data, KERNEL_PAGE);
		else
			check_served(page(5));
	}
}

static void closing_lets_a_remover_go(void)
{
	struct caller caller;
	set_up();
	start_madvise(&caller, 0, 1, MADV_DONTNEED);
	wait_for_event(&caller);
	close(uffd);
	join_call(&caller);
	CHECK_EQ(memory[0], 0); /* removed, and nobody is there to ask */
	CHECK_EQ(memory[KERNEL_PAGE], data[KERNEL_PAGE]);
}

/* A process that waits for its event to be read can be killed: nothing of it is left. */
static void a_waiting_remover_can_be_killed(void)
{
	CHECK_SIGNAL(SIGKILL, {
		struct caller caller;
		set_up();
		start_madvise(&caller, 0, 1, MADV_DONTNEED);
		wait_for_event(&caller);
		kill(getpid(), SIGKILL);
		pause();
	});
}

static void what_removes_nothing_is_not_told(void)
{
	set_up();
	CHECK_CALL(madvise(memory, BYTES, MADV_COLD));
	CHECK_CALL(madvise(memory, BYTES, MADV_PAGEOUT));
	CHECK_CALL(madvise(memory, BYTES, MADV_HUGEPAGE));
	CHECK_CALL(mprotect(page(2), KERNEL_PAGE, PROT_NONE));
	CHECK_CALL(mprotect(page(2), KERNEL_PAGE, PROT_READ | PROT_WRITE));
	CHECK_CALL(syscall(SYS_mlock, memory, KERNEL_PAGE));
	CHECK_CALL(syscall(SYS_munlock, memory, KERNEL_PAGE));
	CHECK_EQ(kernel_poll(uffd, 0), 0);
	CHECK_MEM(memory, data, BYTES / 2);
}

/* Guard pages (Linux 6.13) take content away without a word. What was there is asked for again when
 * they are lifted: who serves it must know by himself what he gave before. */
static void guard_pages_are_not_told(void)
{
	set_up();
	if (madvise(page(3), 2 * KERNEL_PAGE, MADV_GUARD_INSTALL) == -1)
		SKIP("MADV_GUARD_INSTALL: %s", strerror(errno));
	CHECK_EQ(kernel_poll(uffd, 0), 0);
	CHECK_EQ(check_touch(page(3), 0), SIGSEGV);
	CHECK_EQ(check_touch(page(4), 1), SIGSEGV);
	CHECK_EQ(kernel_poll(uffd, 0), 0);
	CHECK_CALL(madvise(page(3), 2 * KERNEL_PAGE, MADV_GUARD_REMOVE));
	CHECK_EQ(kernel_poll(uffd, 0), 0);
	check_served(page(3));
	check_served(page(4));
}

/* And a COPY lifts one, as it does a fence: whoever fills ahead of touches takes the guard away. A
 * ZEROPAGE does not. */
static void a_copy_lifts_a_guard(void)
{
	set_up();
	if (madvise(page(5), 2 * KERNEL_PAGE, MADV_GUARD_INSTALL) == -1)
		SKIP("MADV_GUARD_INSTALL: %s", strerror(errno));
	CHECK_EQ(kernel_zeropage(uffd, page(5), 1, NULL), EEXIST);
	CHECK_EQ(check_touch(page(5), 0), SIGSEGV);
	CHECK_EQ(kernel_copy(uffd, page(5), data, 1, NULL), 0);
	CHECK_MEM(page(5), data, KERNEL_PAGE);
	CHECK_EQ(check_touch(page(6), 0), SIGSEGV);
}

/* ---- fork ---------------------------------------------------------------------------- */

/* Without EVENT_FORK a child's memory is not registered, whatever else was asked for: it reads
 * zeros, and its calls are told to nobody. */
static void a_childs_calls_are_not_told(void)
{
	set_up();
	pid_t pid = fork();
	if (pid == 0) {
		CHECK_MEM(memory, data, BYTES / 2);
		CHECK(kernel_is_zero(memory + BYTES / 2, BYTES / 2));
		CHECK_CALL(madvise(memory, BYTES, MADV_DONTNEED));
		CHECK(kernel_is_zero(memory, BYTES));
		CHECK_CALL(munmap(page(1), KERNEL_PAGE));
		_exit(0);
	}
	CHECK_CHILD(pid);
	CHECK_EQ(kernel_poll(uffd, 0), 0);
	check_served(page(4));
}

static const struct check_case cases[] = {
	CHECK_CASE(a_remove_is_told_before_it_happens),
	CHECK_CASE(madvise_free_is_told_too),
	CHECK_CASE(a_remove_of_missing_pages_is_told),
	CHECK_CASE(nothing_is_installed_while_an_event_waits),
	CHECK_CASE(another_descriptor_is_not_held_up),
	CHECK_CASE(each_mapping_is_told_by_itself),
	CHECK_CASE(faults_are_read_before_events),
	CHECK_CASE(a_copy_that_races_a_remove_stays_or_goes_whole),
	CHECK_CASE(closing_lets_a_remover_go),
	CHECK_CASE(a_waiting_remover_can_be_killed),
	CHECK_CASE(what_removes_nothing_is_not_told),
	CHECK_CASE(guard_pages_are_not_told),
	CHECK_CASE(a_copy_lifts_a_guard),
	CHECK_CASE(a_childs_calls_are_not_told),
};
CHECK_MAIN(cases)
