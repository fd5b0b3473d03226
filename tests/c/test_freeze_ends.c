/* Processes that end while they are frozen, and those that cannot be. */
#include "check.h"

#include "freeze_targets.h"

/* ---- Ends ----------------------------------------------------------------------------------- */

static void notices_the_end(void (*run)(void))
{
	pid_t pid = start(run);
	lr_freeze *freeze = freeze_now(pid);
	uint8_t byte;
	uint64_t got;

	CHECK_CALL(kill(pid, SIGKILL));
	while (lr_freeze_check(freeze) == LR_OK)
		sleep_ms(1);
	CHECK_EQ(lr_freeze_check(freeze), LR_ERR_GONE);
	while (lr_process_read(pid, (uintptr_t)&byte, &byte, 1, &got, NULL) == LR_OK)
		sleep_ms(1); /* SIGKILL takes its time */
	CHECK_EQ(lr_process_read(pid, (uintptr_t)&byte, &byte, 1, &got, NULL), LR_ERR_GONE);
	lr_freeze_close(freeze);
	end(pid);
}

static void notices_the_end_of_one_thread(void)
{
	notices_the_end(count_alone);
}

static void notices_the_end_of_many_threads(void)
{
	notices_the_end(count_in_threads);
}

static void end_main_thread(void)
{
	pthread_t thread;

	CHECK_EQ(pthread_create(&thread, NULL, run_counter, &board->counters[1]), 0);
	board->ready = 1;
	pthread_exit(NULL);
}

static void refuses_what_has_ended(void)
{
	pid_t pid = (pid_t)CHECK_CALL(fork());
	siginfo_t info;

	if (pid == 0)
		_exit(0);
	CHECK_CALL(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT));
	CHECK_EQ(freeze_code(pid), LR_ERR_GONE); /* a zombie */
	CHECK_EQ(waitpid(pid, NULL, 0), pid);
	CHECK_EQ(freeze_code(pid), LR_ERR_NOT_FOUND);

	pid = start(end_main_thread);
	wait_for_state(pid, 'Z');
	CHECK_EQ(freeze_code(pid), LR_ERR_GONE);
	expect_running(); /* its other thread */
	end(pid);
}

static void live_briefly(void)
{
	pthread_t thread;

	CHECK_EQ(pthread_create(&thread, NULL, run_counter, &board->counters[1]), 0);
	board->ready = 1;
	sched_yield();
}

static void survives_ends_at_any_moment(void)
{
	int outcomes[2] = {0, 0};

	for (int i = 0; i < 300; i++) {
		pid_t pid = start(live_briefly);
		int code = freeze_code(pid);
		if (code != LR_OK && code != LR_ERR_GONE)
			CHECK_FAIL("round %d: %s", i, lr_error_name(code));
		outcomes[code == LR_OK]++;
		CHECK_CHILD(pid);
	}
	CHECK_EQ(outcomes[0] + outcomes[1], 300);
}

/* ---- Refusals ------------------------------------------------------------------------------- */

static void refuses_bad_pids(void)
{
	struct lr_procmem_stat stat;

	CHECK_EQ(freeze_code(0), LR_ERR_ARGUMENT);
	CHECK_EQ(freeze_code(-1), LR_ERR_ARGUMENT);
	CHECK_EQ(freeze_code(getpid()), LR_ERR_ARGUMENT);
	CHECK_EQ(freeze_code(INT32_MAX), LR_ERR_NOT_FOUND);
	CHECK_EQ(lr_freeze_close(NULL), 0);
	if (lr_procmem_stat(2, 2, &stat, NULL) == LR_OK && stat.is_kernel)
		CHECK_EQ(freeze_code(2), LR_ERR_ARGUMENT);
}

static void *tell_tid(void *argument)
{
	board->pid = (pid_t)syscall(SYS_gettid);
	return run_counter(argument);
}

static void count_and_tell_tid(void)
{
	pthread_t thread;

	board->pid = 0;
	CHECK_EQ(pthread_create(&thread, NULL, tell_tid, &board->counters[1]), 0);
	while (!board->pid)
		sched_yield();
	count_alone();
}

static void refuses_the_number_of_a_thread(void)
{
	pid_t pid = start(count_and_tell_tid);

	CHECK_EQ(freeze_code(board->pid), LR_ERR_NOT_FOUND);
	expect_running();
	end(pid);
}

static void refuses_what_is_traced(void)
{
	pid_t pid = start(count_in_threads);
	lr_freeze *first = freeze_now(pid);
	pid_t second = (pid_t)CHECK_CALL(fork());

	if (second == 0) {
		CHECK_EQ(freeze_code(pid), LR_ERR_PERMISSION);
		_exit(0);
	}
	CHECK_CHILD(second);
	CHECK_EQ(freeze_code(pid), LR_ERR_PERMISSION); /* nor twice in one process */
	expect_still(5);
	lr_freeze_close(first);
	expect_running();
	end(pid);
}

static void refuses_other_users(void)
{
	if (getuid() != 0)
		SKIP("needs root, to become somebody else");
	pid_t pid = start(count_alone);
	pid_t other = (pid_t)CHECK_CALL(fork());
	if (other == 0) {
		CHECK_CALL(setuid(65534));
		CHECK_EQ(freeze_code(pid), LR_ERR_PERMISSION);
		_exit(0);
	}
	CHECK_CHILD(other);
	expect_running();
	end(pid);
}

/* The parent of a vfork child cannot be stopped until that one has ended. */
static void wait_in_vfork(void)
{
	pthread_t thread;

	CHECK_EQ(pthread_create(&thread, NULL, run_counter, &board->counters[1]), 0);
	board->ready = 1;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
	pid_t child = vfork();
#pragma GCC diagnostic pop
	if (child == 0) {
		board->pid = getpid();
		while (!board->stop)
			usleep(1000);
		_exit(0);
	}
	waitpid(child, NULL, 0);
	run_counter(&board->counters[0]);
}

static void gives_up_in_time(void)
{
	struct lr_problem problem;
	lr_freeze *freeze;

	pid_t pid = start(wait_in_vfork);
	wait_for_state(pid, 'D');
	int64_t before = now_ns();
	CHECK_EQ(lr_freeze_open(pid, 100000000, &freeze, &problem), LR_ERR_TIMEOUT);
	CHECK(freeze == NULL);
	CHECK_EQ(problem.code, LR_ERR_TIMEOUT);
	int64_t waited = now_ns() - before;
	CHECK(waited >= 100000000 && waited < 5000000000);
	uint64_t alive = board->counters[1];
	while (board->counters[1] == alive) /* its other thread was let go */
		sleep_ms(1);
	board->stop = 1;
	while (board->counters[0] == 0) /* and itself */
		sleep_ms(1);
	freeze = freeze_now(pid);
	CHECK_EQ(lr_freeze_thread_count(freeze), 2);
	lr_freeze_close(freeze);
	expect_running();
	end(pid);
}

static const struct check_case cases[] = {
	CHECK_CASE(notices_the_end_of_one_thread),
	CHECK_CASE(notices_the_end_of_many_threads),
	CHECK_CASE(refuses_what_has_ended),
	CHECK_CASE(survives_ends_at_any_moment),
	CHECK_CASE(refuses_bad_pids),
	CHECK_CASE(refuses_the_number_of_a_thread),
	CHECK_CASE(refuses_what_is_traced),
	CHECK_CASE(refuses_other_users),
	CHECK_CASE(gives_up_in_time),
};

CHECK_MAIN(cases)
