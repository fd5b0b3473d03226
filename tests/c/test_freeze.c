/* Stopping another process, and letting it run again whatever happens. */
#include "check.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/ptrace.h>
#include <time.h>

#include "freeze.h"
#include "procmem.h"

#define LIMIT_NS INT64_C(5000000000)
#define WORKERS  8

/* What targets tell; shared with all children. */
struct board {
	_Atomic uint64_t counters[WORKERS];
	_Atomic uint64_t threads_made;
	_Atomic uint64_t signals;
	_Atomic uint64_t signal_sum;
	_Atomic uint64_t sent;
	_Atomic int ready;
	_Atomic int stop;
	_Atomic pid_t pid;
};

static struct board *make_board(void)
{
	struct board *board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(board != MAP_FAILED);
	return board;
}

static struct board *board;

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static void sleep_ms(int ms)
{
	struct timespec time = {ms / 1000, ms % 1000 * 1000000L};

	while (nanosleep(&time, &time) == -1)
		;
}

static uint64_t count(void)
{
	uint64_t sum = board->threads_made;

	for (int i = 0; i < WORKERS; i++)
		sum += board->counters[i];
	return sum;
}

static void expect_running(void)
{
	uint64_t before = count();

	while (count() < before + 3) /* or the case's limit ends it */
		sleep_ms(1);
}

static void expect_still(int ms)
{
	uint64_t before = count();

	sleep_ms(ms);
	CHECK_EQ(count(), before);
}

static char state_of(pid_t pid)
{
	struct lr_procmem_stat stat;

	CHECK_EQ(lr_procmem_stat(pid, pid, &stat, NULL), LR_OK);
	return stat.state;
}

static void wait_for_state(pid_t pid, char state)
{
	while (state_of(pid) != state)
		sleep_ms(1);
}

static lr_freeze *freeze_now(pid_t pid)
{
	lr_freeze *freeze;
	struct lr_problem problem = {0};
	int code = lr_freeze_open(pid, LIMIT_NS, &freeze, &problem);

	if (code != LR_OK)
		CHECK_FAIL("lr_freeze_open: %s (%s)", lr_error_name(code),
			   strerror(problem.os_error));
	return freeze;
}

static int freeze_code(pid_t pid)
{
	lr_freeze *freeze;
	struct lr_problem problem;
	int code = lr_freeze_open(pid, LIMIT_NS, &freeze, &problem);

	CHECK(freeze == NULL || code == LR_OK);
	if (code < 0)
		CHECK_EQ(problem.code, code);
	lr_freeze_close(freeze);
	return code;
}

/* ---- Targets -------------------------------------------------------------------------------- */

static void *run_counter(void *argument)
{
	_Atomic uint64_t *counter = argument;

	for (;;) {
		(*counter)++;
		if (*counter % 64 == 0)
			sched_yield();
	}
	return NULL;
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

static pid_t start(void (*run)(void))
{
	board = board ? board : make_board();
	board->ready = 0;
	fflush(NULL);
	pid_t pid = (pid_t)CHECK_CALL(fork());
	if (pid == 0) {
		run();
		_exit(0);
	}
	while (!board->ready)
		sleep_ms(1);
	return pid;
}

static void end(pid_t pid)
{
	int status;

	kill(pid, SIGKILL);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void count_alone(void)
{
	board->ready = 1;
	run_counter(&board->counters[0]);
}

static void count_in_threads(void)
{
	pthread_t thread;

	for (int i = 1; i < 4; i++)
		CHECK_EQ(pthread_create(&thread, NULL, run_counter, &board->counters[i]), 0);
	count_alone();
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
