/* Faults answered in a SIGBUS handler: whose the other signals are, and what the handler leaves as
 * it was. */
#include "check.h"

#include <pthread.h>
#include <sys/time.h>

#include "inline_support.h"
#include "uffd.h"

/* ---- The program's own handlers ---- */

static _Atomic int handled;
static _Atomic uintptr_t handled_address;
static _Thread_local sigjmp_buf way_out;
static sigset_t mask_inside;

static void leave(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	handled++;
	handled_address = (uintptr_t)info->si_addr;
	pthread_sigmask(SIG_BLOCK, NULL, &mask_inside);
	siglongjmp(way_out, 1);
}

static void own_handler(int flags)
{
	struct sigaction action = {.sa_sigaction = leave, .sa_flags = SA_SIGINFO | flags};

	sigaddset(&action.sa_mask, SIGUSR2);
	CHECK_CALL(sigaction(SIGBUS, &action, NULL));
}

/* Whether reading a byte was left by the program's handler. */
static bool is_left(const uint8_t *address)
{
	if (sigsetjmp(way_out, 1))
		return true;
	(void)*(volatile const uint8_t *)address;
	return false;
}

/* A page of a file that was cut off behind it. */
static uint8_t *cut_file(void)
{
	int fd = (int)CHECK_CALL(memfd_create("cut", MFD_CLOEXEC));
	uint8_t *memory;

	CHECK_CALL(ftruncate(fd, PAGE));
	memory = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
	CHECK(memory != MAP_FAILED);
	CHECK_CALL(ftruncate(fd, 0));
	close(fd);
	return memory;
}

static void the_handler_before_gets_the_rest(void)
{
	uint8_t *cut = cut_file();
	struct lr_uffd_probe probe;
	struct lazy lazy;

	own_handler(0);
	lazy_open(&lazy, PAGE, 64 * PAGE, "d");
	CHECK(!is_left(lazy.memory));
	CHECK(is_left(cut));
	CHECK_EQ(handled_address, (uintptr_t)cut);
	/* Called under the mask that it asked for, and no other. */
	CHECK_EQ(sigismember(&mask_inside, SIGBUS), 1);
	CHECK_EQ(sigismember(&mask_inside, SIGUSR2), 1);
	CHECK_EQ(sigismember(&mask_inside, SIGUSR1), 0);
	lr_uffd_probe(&probe);
	if (!(probe.features & LR_UFFD_FEATURE_POISON))
		SKIP("no POISON here: a fence gives SIGSEGV, which is another handler's");
	/* What cannot be loaded is fenced, and then is his. */
	lazy_damage(&lazy, 5);
	CHECK(is_left(lazy.memory + 5 * PAGE + 7));
	CHECK_EQ(handled_address, (uintptr_t)lazy.memory + 5 * PAGE + 7);
	CHECK(is_left(lazy.memory + 5 * PAGE));
	CHECK(!is_left(lazy.memory + 6 * PAGE));
	CHECK_EQ(lazy_stats(&lazy).errors, 1);
	CHECK_EQ(handled, 3);
	/* One that was sent. */
	CHECK_EQ(sigsetjmp(way_out, 1) ? 0 : raise(SIGBUS), 0);
	CHECK_EQ(handled, 4);
	lazy_close(&lazy);
	CHECK(is_left(cut));
}

static void without_a_handler_it_kills(void)
{
	uint8_t *cut = cut_file();
	struct lazy lazy;

#ifdef __SANITIZE_THREAD__
	SKIP("ThreadSanitizer allows no new thread in a child of many threads");
#endif
	lazy_open(&lazy, PAGE, 64 * PAGE, "d");
	lazy_damage(&lazy, 5);
	CHECK_SIGNAL(SIGBUS, (void)*(volatile uint8_t *)cut;);
	CHECK_SIGNAL(SIGBUS, raise(SIGBUS););
#if CHECK_SANITIZER_FACTOR == 1
	CHECK_SIGNAL(SIGBUS, (void)*(volatile uint8_t *)(lazy.memory + 5 * PAGE););
#endif
	CHECK_EQ(lazy.memory[6 * PAGE], lazy.expected[6 * PAGE]);
	signal(SIGBUS, SIG_IGN);
	lazy_close(&lazy);
}

static void one_that_is_ignored_when_sent_goes_on(void)
{
	struct lazy lazy;

	signal(SIGBUS, SIG_IGN);
	lazy_open(&lazy, PAGE, 64 * PAGE, "d");
	CHECK_CALL(raise(SIGBUS));
	CHECK_EQ(lazy.memory[6 * PAGE], lazy.expected[6 * PAGE]);
	lazy_close(&lazy);
}

/* One that the program puts in place later gets our faults; the next session is on top again, and
 * passes on to it, which may call what was there before: there is no circle. */
static struct sigaction was_there;

static void call_the_one_before(int number, siginfo_t *info, void *context)
{
	handled++;
	if (was_there.sa_flags & SA_SIGINFO)
		was_there.sa_sigaction(number, info, context);
}

static void later_handlers_are_on_top_until_the_next_session(void)
{
	struct sigaction action = {.sa_sigaction = call_the_one_before, .sa_flags = SA_SIGINFO};
	uint8_t *cut = cut_file();
	struct lazy lazies[2];

	own_handler(0);
	lazy_open(&lazies[0], PAGE, 64 * PAGE, "d");
	CHECK_CALL(sigaction(SIGBUS, &action, &was_there));
	/* It calls ours. */
	CHECK(!is_left(lazies[0].memory));
	CHECK_EQ(handled, 1);
	lazy_open(&lazies[1], PAGE, 64 * PAGE, "d");
	CHECK(!is_left(lazies[1].memory));
	CHECK(!is_left(lazies[0].memory + PAGE));
	CHECK_EQ(handled, 1);
	/* Ours, the program's, ours again, and the first. */
	CHECK(is_left(cut));
	CHECK_EQ(handled, 3);
	lazy_close(&lazies[1]);
	lazy_close(&lazies[0]);
	CHECK(is_left(cut));
	CHECK_EQ(handled, 5);
	/* Again and again: what is on top is taken away with the last session. */
	for (int i = 0; i < 20; i++) {
		lazy_open(&lazies[0], PAGE, 64 * PAGE, "d");
		CHECK(!is_left(lazies[0].memory));
		lazy_close(&lazies[0]);
	}
	/* One that calls nothing gets them all. */
	lazy_open(&lazies[0], PAGE, 64 * PAGE, "d");
	own_handler(0);
	CHECK(is_left(lazies[0].memory));
	lazy_close(&lazies[0]);
}

static void too_many_handlers_are_an_error(void)
{
	struct lazy lazies[9];
	struct lr_session_options options = {
		.privilege = LR_PRIVILEGE_AUTO,
		.fault_mode = LR_FAULT_INLINE,
	};
	lr_session *session;

	for (int i = 0; i < 8; i++) {
		lazy_open(&lazies[i], PAGE, PAGE, "d");
		own_handler(0);
	}
	CHECK_EQ(lr_session_open(lazies[0].opened, &options, &session, NULL), LR_ERR_LIMIT);
	for (int i = 0; i < 8; i++)
		lazy_close(&lazies[i]);
}

/* ---- lr_touch, which has a handler too ---- */

static void *touch_for_a_while(void *argument)
{
	_Atomic int *phase = argument;
	uint8_t *cut = cut_file();
	uint32_t latency_ns;

	while (*phase == 0) {
		CHECK_EQ(lr_touch(cut, PAGE, PAGE, LR_TOUCH_SEQUENTIAL, 0, 0, 1, &latency_ns), 1);
		CHECK_EQ(latency_ns, LR_TOUCH_FAILED);
	}
	return NULL;
}

/* Whichever of the two comes first: what ours answers is a page that came, what it does not is one
 * that could not be read. */
static void touching_counts_what_was_answered(void)
{
	uint32_t latency_ns[64];
	_Atomic int phase = 0;
	pthread_t thread;

	CHECK_EQ(pthread_create(&thread, NULL, touch_for_a_while, &phase), 0);
	for (int i = 0; i < 30; i++) {
		struct lazy lazy;

		lazy_open(&lazy, PAGE, 64 * PAGE, "d");
		lazy_damage(&lazy, 9);
		CHECK_EQ(lr_touch(lazy.memory, 64 * PAGE, PAGE, LR_TOUCH_RANDOM, 1, 0, 64,
				  latency_ns),
			 64);
		unsigned failed = 0;

		for (unsigned page = 0; page < 64; page++) {
			failed += latency_ns[page] == LR_TOUCH_FAILED;
			CHECK(latency_ns[page] > 0);
		}
		CHECK_EQ(failed, 1);
		/* Without CONFIG_MEMORY_FAILURE the kernel does not say of a fence that it is one:
		 * its page is looked at once more. */
		CHECK_EQ(lazy_stats(&lazy).faults / 2, 32);
		/* Now with no handler of lr_touch's. */
		CHECK_EQ(lazy.memory[8 * PAGE], lazy.expected[8 * PAGE]);
		lazy_close(&lazy);
	}
	phase = 1;
	CHECK_EQ(pthread_join(thread, NULL), 0);
}

/* ---- What the handler leaves alone ---- */

static const uint8_t *storm_memory;
static _Atomic uint64_t storms;
static _Atomic bool is_wrong;
static const uint8_t *storm_expected;

/* Touches lazy memory itself, between any two instructions of the program's. */
static void storm(int number)
{
	uint64_t page = ++storms * 13 % 4096;

	(void)number;
	if (storm_memory[page * PAGE] != storm_expected[page * PAGE])
		is_wrong = true;
}

static void other_signals_come_in_between(void)
{
	struct itimerval often = {{0, 150}, {0, 150}}, never = {{0, 0}, {0, 0}};
	struct sigaction action = {.sa_handler = storm, .sa_flags = SA_RESTART};
	struct lazy lazy;

#ifdef __SANITIZE_THREAD__
	SKIP("ThreadSanitizer blocks all signals while it calls a handler: a touch there kills");
#endif
	lazy_open(&lazy, PAGE, 4096 * PAGE, "d");
	storm_memory = lazy.memory;
	storm_expected = lazy.expected;
	CHECK_CALL(sigaction(SIGALRM, &action, NULL));
	CHECK_CALL(setitimer(ITIMER_REAL, &often, NULL));
	CHECK_MEM(lazy.memory, lazy.expected, lazy.length);
	CHECK_CALL(setitimer(ITIMER_REAL, &never, NULL));
	CHECK(!is_wrong);
	CHECK(storms > 0);
	lazy_close(&lazy);
}

static void *touch_when_cancelled(void *argument)
{
	struct lazy *lazy = argument;
	static _Atomic uint64_t page;

	/* Pending now, and acted upon at the next point where a thread may be cancelled: reading
	 * the image is one. */
	pthread_cancel(pthread_self());
	for (int i = 0; i < 20; i++)
		(void)*(volatile uint8_t *)(lazy->memory + page++ * PAGE);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	return argument;
}

/* A thread that is to be cancelled brings its page first: else it would go with what it holds. */
static void cancelled_threads_leave_nothing_behind(void)
{
	struct lazy lazy;

#ifdef __SANITIZE_THREAD__
	SKIP("ThreadSanitizer acts on a cancellation in calls of its own");
#endif
	lazy_open(&lazy, PAGE, 4096 * PAGE, "d");
	for (int i = 0; i < 100; i++) {
		pthread_t thread;
		void *result;

		CHECK_EQ(pthread_create(&thread, NULL, touch_when_cancelled, &lazy), 0);
		CHECK_EQ(pthread_join(thread, &result), 0);
		CHECK(result == &lazy);
	}
	CHECK_MEM(lazy.memory, lazy.expected, lazy.length);
	lazy_close(&lazy);
}

/* ---- Waiting ---- */

static void *touch_first(void *argument)
{
	struct lazy *lazy = argument;

	CHECK_EQ(lazy->memory[0], lazy->expected[0]);
	return NULL;
}

static uint64_t used_us(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000
	       + (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

/* While a range is suspended its touchers wait, and use no processor for that. */
static void touchers_of_what_is_suspended_sleep(void)
{
	struct lazy lazy;
	pthread_t thread;
	uint64_t before_us;

	lazy_open(&lazy, PAGE, 64 * PAGE, "d");
	CHECK_EQ(lr_session_suspend(lazy.session, 0), LR_OK);
	CHECK_EQ(pthread_create(&thread, NULL, touch_first, &lazy), 0);
	before_us = used_us();
	usleep(200000);
	CHECK(used_us() - before_us < 100000);
	CHECK_EQ(lazy_stats(&lazy).pages_copied, 0);
	CHECK_EQ(lr_session_resume(lazy.session, 0), LR_OK);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK_EQ(lazy_stats(&lazy).pages_copied, 1);
	lazy_close(&lazy);
}

/* ---- A child that was made without our handlers ---- */

/* What is known of the parent's memory must not be used there: a fault at such an address is the
 * child's own affair. */
static void a_bare_clone_has_none_of_it(void)
{
	struct lazy lazy;

	signal(SIGBUS, SIG_DFL); /* a sanitizer has one */
	lazy_open(&lazy, PAGE, 64 * PAGE, "d");
	CHECK_EQ(lazy.memory[0], lazy.expected[0]);
	pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);

	CHECK(pid != -1);
	if (pid == 0) {
		int fd = memfd_create("cut", 0);

		/* Where the parent's region is, a file that is too short. */
		mmap(lazy.memory, 64 * PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
		(void)*(volatile uint8_t *)(lazy.memory + 9 * PAGE);
		_exit(3);
	}
	int status = check_wait(pid);

	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
	/* Nor was it put into the parent's memory. */
	CHECK_EQ(lazy_stats(&lazy).pages_copied, 1);
	CHECK_CALL(madvise(lazy.memory + 9 * PAGE, PAGE, MADV_DONTNEED));
	CHECK_EQ(lazy.memory[9 * PAGE], 0);
	CHECK_MEM(lazy.memory + 10 * PAGE, lazy.expected + 10 * PAGE, 54 * PAGE);
	lazy_close(&lazy);
}

static const struct check_case cases[] = {
	CHECK_CASE(the_handler_before_gets_the_rest),
	CHECK_CASE(without_a_handler_it_kills),
	CHECK_CASE(one_that_is_ignored_when_sent_goes_on),
	CHECK_CASE(later_handlers_are_on_top_until_the_next_session),
	CHECK_CASE(too_many_handlers_are_an_error),
	CHECK_CASE(touching_counts_what_was_answered),
	CHECK_CASE(other_signals_come_in_between),
	CHECK_CASE(cancelled_threads_leave_nothing_behind),
	CHECK_CASE(touchers_of_what_is_suspended_sleep),
	CHECK_CASE(a_bare_clone_has_none_of_it),
};

CHECK_MAIN(cases)
