/*
 * Freezing a process in the middle of exec(): the thread that calls it waits in the kernel until
 * all others have ended, and one that is traced has not ended before its tracer has taken note.
 */
#include "check.h"

#include <fcntl.h>

#include "freeze_targets.h"

#define LOOP_NAME "LR_TEST_EXEC_LOOP"
#define PIPE_FD   9

static void *wait_for_ever(void *argument)
{
	for (;;)
		pause();
	return argument;
}

static void *exec_again(void *argument)
{
	static char *arguments[] = {"exec_loop", NULL};

	CHECK_CALL(write(PIPE_FD, ".", 1));
	execv("/proc/self/exe", arguments);
	_exit(1);
	return argument;
}

/* Before main(): this is the program that was started anew. It does so itself, from one of its
 * threads, at once. */
__attribute__((constructor)) static void run_loop(void)
{
	pthread_t thread;

	if (!getenv(LOOP_NAME))
		return;
	/* EAGAIN where the exec() has begun. */
	for (int i = 0; i < 12; i++)
		if (pthread_create(&thread, NULL, i == 6 ? exec_again : wait_for_ever, NULL) != 0)
			break;
	wait_for_ever(NULL);
}

static void start_loop(void)
{
	setenv(LOOP_NAME, "1", 1);
	board->ready = 1;
	exec_again(NULL);
}

static void stops_in_exec_by_any_thread(void)
{
	int ends[2];

	CHECK_CALL(pipe2(ends, O_NONBLOCK));
	CHECK_CALL(dup2(ends[1], PIPE_FD));
	pid_t pid = start(start_loop);
	for (int i = 0; i < 400; i++) {
		char dots[4096];
		lr_freeze *freeze = freeze_now(pid);
		if (i % 16 == 0) {
			while (read(ends[0], dots, sizeof(dots)) > 0)
				;
			sleep_ms(3);
			CHECK_ERRNO(read(ends[0], dots, sizeof(dots)), EAGAIN);
		}
		lr_freeze_close(freeze);
		struct pollfd more = {.fd = ends[0], .events = POLLIN};
		CHECK_EQ(poll(&more, 1, 10000), 1);
		while (read(ends[0], dots, sizeof(dots)) > 0)
			;
	}
	end(pid);
}

static const struct check_case cases[] = {
	CHECK_CASE_LIMIT(stops_in_exec_by_any_thread, 60),
};

CHECK_MAIN(cases)
