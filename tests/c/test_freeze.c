/* Stopping another process, and letting it run again whatever happens. */
#include "check.h"

#include <fcntl.h>

#include "freeze_targets.h"

/* ---- Stopping and running ------------------------------------------------------------------- */

static void stops_and_runs_again(void)
{
	pid_t pid = start(count_alone);

	for (int i = 0; i < 20; i++) {
		int64_t before = now_ns();
		lr_freeze *freeze = freeze_now(pid);
		CHECK_EQ(lr_freeze_thread_count(freeze), 1);
		CHECK_EQ(lr_freeze_check(freeze), LR_OK);
		expect_still(10);
		CHECK_EQ(lr_freeze_check(freeze), LR_OK);
		int64_t frozen_ns = lr_freeze_close(freeze);
		CHECK(frozen_ns >= 10000000 && frozen_ns <= now_ns() - before);
		expect_running();
	}
	end(pid);
}

static void stops_all_threads(void)
{
	pid_t pid = start(count_in_threads);
	lr_freeze *freeze = freeze_now(pid);

	CHECK_EQ(lr_freeze_thread_count(freeze), 4);
	expect_still(20);
	lr_freeze_close(freeze);
	for (int i = 0; i < 4; i++) {
		uint64_t before = board->counters[i];
		while (board->counters[i] == before)
			sleep_ms(1);
	}
	end(pid);
}

/* Long enough to be seen counting, if it were forgotten. */
static void *live_a_little(void *argument)
{
	int64_t until = now_ns() + 2000000;

	do {
		board->threads_made++;
	} while (now_ns() < until);
	return argument;
}

/* Makes threads without end. */
static void *run_maker(void *argument)
{
	for (;;) {
		pthread_t threads[4];
		for (int i = 0; i < 4; i++)
			CHECK_EQ(pthread_create(&threads[i], NULL, live_a_little, NULL), 0);
		for (int i = 0; i < 4; i++)
			pthread_join(threads[i], NULL);
	}
	return argument;
}

static void make_threads(void)
{
	pthread_t thread;

	for (int i = 0; i < 4; i++)
		CHECK_EQ(pthread_create(&thread, NULL, run_maker, NULL), 0);
	board->ready = 1;
	for (;;)
		pause();
}

static void stops_makers_of_threads(void)
{
	pid_t pid = start(make_threads);

	for (int i = 0; i < 100; i++) {
		lr_freeze *freeze = freeze_now(pid);
		CHECK(lr_freeze_thread_count(freeze) >= 5);
		expect_still(2);
		lr_freeze_close(freeze);
		expect_running();
	}
	end(pid);
}

static void exec_itself(void)
{
	/* Each is a new image in the same process; the file is found by name, so nothing else is
	 * needed. */
	static const char script[] = "printf . >&9; exec sh -c \"$0\" \"$0\"";

	board->ready = 1;
	execl("/bin/sh", "sh", "-c", script, script, (char *)NULL);
	_exit(1);
}

static void stops_in_exec(void)
{
	int ends[2];
	uint64_t total = 0;

	CHECK_CALL(pipe2(ends, O_NONBLOCK));
	CHECK_CALL(dup2(ends[1], 9)); /* what the script writes to */
	pid_t pid = start(exec_itself);
	for (int i = 0; i < 50; i++) {
		char dots[4096];
		lr_freeze *freeze = freeze_now(pid);
		while (read(ends[0], dots, sizeof(dots)) > 0)
			;
		sleep_ms(3);
		CHECK_ERRNO(read(ends[0], dots, sizeof(dots)), EAGAIN);
		lr_freeze_close(freeze);
		struct pollfd more = {.fd = ends[0], .events = POLLIN};
		CHECK_EQ(poll(&more, 1, 10000), 1);
		total++;
	}
	CHECK_EQ(total, 50);
	end(pid);
}

/* ---- Signals -------------------------------------------------------------------------------- */

static void take_signal(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	board->signals++;
	board->signal_sum += (uint64_t)info->si_value.sival_int;
}

static void install_handlers(void)
{
	struct sigaction action = {.sa_sigaction = take_signal,
				   .sa_flags = SA_SIGINFO | SA_RESTART};

	CHECK_CALL(sigaction(SIGUSR1, &action, NULL));
	CHECK_CALL(sigaction(SIGRTMIN, &action, NULL));
}

static void count_and_take_signals(void)
{
	install_handlers();
	count_alone();
}

static void keeps_signals_that_come_meanwhile(void)
{
	pid_t pid = start(count_and_take_signals);
	lr_freeze *freeze = freeze_now(pid);

	for (int i = 1; i <= 10; i++)
		CHECK_CALL(sigqueue(pid, SIGRTMIN, (union sigval){.sival_int = i}));
	CHECK_CALL(kill(pid, SIGUSR1));
	CHECK_CALL(kill(pid, SIGUSR1)); /* pending already: they are one */
	sleep_ms(20);
	CHECK_EQ(board->signals, 0);
	CHECK_EQ(lr_freeze_check(freeze), LR_OK);
	lr_freeze_close(freeze);
	while (board->signals < 11)
		sleep_ms(1);
	sleep_ms(20);
	CHECK_EQ(board->signals, 11);
	CHECK(board->signal_sum >= 55);
	expect_running();
	end(pid);
}

static void *signal_itself(void *argument)
{
	while (!board->stop) {
		uint64_t number = ++board->sent;
		while (sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = (int)number}) == -1)
			sched_yield(); /* the queue is full */
		board->counters[0]++;
	}
	return argument;
}

static void flood_itself(void)
{
	pthread_t threads[3];

	install_handlers();
	for (int i = 0; i < 3; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, signal_itself, NULL), 0);
	board->ready = 1;
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	while (board->signals < board->sent)
		sched_yield();
	sleep_ms(20);
}

/* Thousands a second, so that many freezes find a thread in the act of taking one. */
static void keeps_signals_under_delivery(void)
{
	pid_t pid = start(flood_itself);

	for (int i = 0; i < 300; i++) {
		lr_freeze *freeze = freeze_now(pid);
		lr_freeze_close(freeze);
		if (i % 10 == 0)
			expect_running();
	}
	board->stop = 1;
	CHECK_CHILD(pid); /* hangs if one was lost */
	CHECK_EQ(board->signals, board->sent);
	CHECK_EQ(board->signal_sum, board->sent * (board->sent + 1) / 2);
}

static void stopped_stays_stopped(void)
{
	pid_t pid = start(count_in_threads);

	CHECK_CALL(kill(pid, SIGSTOP));
	CHECK_EQ(waitpid(pid, NULL, WUNTRACED), pid);
	for (int i = 0; i < 3; i++) {
		lr_freeze *freeze = freeze_now(pid);
		CHECK_EQ(lr_freeze_check(freeze), LR_OK);
		expect_still(5);
		lr_freeze_close(freeze);
		expect_still(30);
		wait_for_state(pid, 'T');
	}
	CHECK_CALL(kill(pid, SIGCONT));
	expect_running();
	end(pid);
}

static void stop_and_continue_meanwhile(void)
{
	pid_t pid = start(count_alone);
	lr_freeze *freeze = freeze_now(pid);

	CHECK_CALL(kill(pid, SIGSTOP));
	expect_still(5);
	CHECK_EQ(lr_freeze_check(freeze), LR_OK);
	lr_freeze_close(freeze);
	wait_for_state(pid, 'T');
	expect_still(20);

	freeze = freeze_now(pid);
	CHECK_CALL(kill(pid, SIGCONT));
	expect_still(20);
	CHECK_EQ(lr_freeze_check(freeze), LR_OK);
	lr_freeze_close(freeze);
	expect_running();
	end(pid);
}

/* ---- The dumper ----------------------------------------------------------------------------- */

static void killed_dumper_lets_go(void)
{
	pid_t pid = start(count_in_threads);

	for (int i = 0; i < 5; i++) {
		int ends[2];
		char byte;
		CHECK_CALL(pipe(ends));
		pid_t dumper = (pid_t)CHECK_CALL(fork());
		if (dumper == 0) {
			freeze_now(pid);
			CHECK_EQ(write(ends[1], "f", 1), 1);
			for (;;)
				pause();
		}
		CHECK_EQ(read(ends[0], &byte, 1), 1);
		expect_still(10);
		end(dumper);
		expect_running();
		close(ends[0]);
		close(ends[1]);
	}
	end(pid);
}

static void *close_it(void *freeze)
{
	expect_still(5);
	CHECK(lr_freeze_close(freeze) > 0);
	return NULL;
}

static void *open_it(void *argument)
{
	return freeze_now(*(pid_t *)argument);
}

static void any_thread_may_open_and_close(void)
{
	pid_t pid = start(count_alone);
	pthread_t thread;
	void *freeze;

	CHECK_EQ(pthread_create(&thread, NULL, open_it, &pid), 0);
	pthread_join(thread, &freeze); /* the thread that asked is gone: still frozen */
	expect_still(20);
	CHECK_EQ(pthread_create(&thread, NULL, close_it, freeze), 0);
	pthread_join(thread, NULL);
	expect_running();
	end(pid);
}

static void *wait_for_anyone(void *argument)
{
	while (!board->stop)
		waitpid(-1, NULL, __WALL | WNOHANG | WUNTRACED);
	return argument;
}

static void works_beside_a_greedy_waiter(void)
{
	pid_t pid = start(count_in_threads);
	pthread_t thread;

	CHECK_EQ(pthread_create(&thread, NULL, wait_for_anyone, NULL), 0);
	for (int i = 0; i < 50; i++) {
		lr_freeze *freeze = freeze_now(pid);
		expect_still(1);
		lr_freeze_close(freeze);
		expect_running();
	}
	board->stop = 1;
	pthread_join(thread, NULL);
	end(pid);
}

static void leaves_the_exit_status_to_the_parent(void)
{
	pid_t pid = start(count_in_threads);
	lr_freeze *freeze = freeze_now(pid);

	CHECK_EQ(waitpid(-1, NULL, WNOHANG), 0); /* no ptrace stop to be seen */
	CHECK_CALL(kill(pid, SIGTERM));
	lr_freeze_close(freeze);
	int status;
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
}

static const struct check_case cases[] = {
	CHECK_CASE(stops_and_runs_again),
	CHECK_CASE(stops_all_threads),
	CHECK_CASE(stops_makers_of_threads),
	CHECK_CASE(stops_in_exec),
	CHECK_CASE(keeps_signals_that_come_meanwhile),
	CHECK_CASE(keeps_signals_under_delivery),
	CHECK_CASE(stopped_stays_stopped),
	CHECK_CASE(stop_and_continue_meanwhile),
	CHECK_CASE(killed_dumper_lets_go),
	CHECK_CASE(any_thread_may_open_and_close),
	CHECK_CASE(works_beside_a_greedy_waiter),
	CHECK_CASE(leaves_the_exit_status_to_the_parent),
};

CHECK_MAIN(cases)
