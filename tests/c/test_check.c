/* The harness itself: each way in which a case can go wrong must be seen. Runs itself as a child
 * with bad cases. */
#include "check.h"

#include <pthread.h>

static int deliberate; /* set by the environment: the cases below then do what they are named for */

static void *fail_in_thread(void *unused)
{
	CHECK_EQ(1, 2);
	return unused;
}

static void fails_in_a_thread(void)
{
	pthread_t thread;
	CHECK_EQ(pthread_create(&thread, NULL, fail_in_thread, NULL), 0);
	pthread_join(thread, NULL);
}

static void fails_in_a_child(void)
{
	pid_t pid = fork();
	if (pid == 0)
		CHECK(!"in the child");
	CHECK_CHILD(pid);
}

static void crashes(void)
{
	struct rlimit none = {0, 0};
	setrlimit(RLIMIT_CORE, &none);
	signal(SIGABRT, SIG_DFL);
	raise(SIGABRT);
}

static void hangs(void)
{
	if (fork() == 0)
		for (;;)
			pause(); /* must be killed too */
	for (;;)
		pause();
}

static void skips(void)
{
	SKIP("because of %d", 42);
}

static void wrong_signal(void)
{
	CHECK_SIGNAL(SIGBUS, raise(SIGSEGV););
}

static void no_signal(void)
{
	CHECK_SIGNAL(SIGBUS, (void)deliberate;);
}

static void wrong_errno(void)
{
	CHECK_ERRNO(close(-1), EINVAL);
}

static void wrong_memory(void)
{
	CHECK_MEM("abc", "abd", 3);
}

static void passes(void)
{
	CHECK(1);
	CHECK_NE(1, 2);
	CHECK_STR("a", "a");
	CHECK_CALL(getpid());
	CHECK_ERRNO(close(-1), EBADF);
	CHECK_SIGNAL(SIGTERM, raise(SIGTERM););
	char *none = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK_EQ(check_touch(none, 0), SIGSEGV);
	CHECK_EQ(check_touch(&deliberate, 1), 0);
}

/* What `program CASE` says, and its exit status. */
static int run_self(const char *name, char *ret_output, size_t room)
{
	int ends[2];
	CHECK_CALL(pipe(ends));
	pid_t pid = fork();
	if (pid == 0) {
		dup2(ends[1], STDOUT_FILENO);
		close(ends[0]);
		close(ends[1]);
		setenv("CHECK_DELIBERATE", "1", 1);
		execl("/proc/self/exe", "test_check", name, (char *)NULL);
		_exit(127);
	}
	close(ends[1]);
	size_t used = 0;
	ssize_t got;
	while (used < room - 1 && (got = read(ends[0], ret_output + used, room - 1 - used)) > 0)
		used += (size_t)got;
	ret_output[used] = '\0';
	close(ends[0]);
	int status;
	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void expect(const char *name, int status, const char *text, const char *tally)
{
	char output[4000];
	int got = run_self(name, output, sizeof(output));
	if (got != status || !strstr(output, text) || !strstr(output, tally))
		CHECK_FAIL("%s: exit status %d, output:\n%s", name, got, output);
}

static void every_failure_is_seen(void)
{
	const char *failed = "test_check: 0 passed, 1 failed, 0 skipped\n";
	expect("fails_in_a_thread", 1, "1 == 2: got 1 (0x1), expected 2 (0x2)", failed);
	expect("fails_in_a_child", 1, "in the child", failed);
	expect("crashes", 1, "FAIL crashes: died by signal 6 (Aborted)", failed);
	expect("hangs", 1, "FAIL hangs: not done after ", failed);
	expect("wrong_signal", 1, "died by signal 11 (Segmentation fault), expected 7", failed);
	expect("no_signal", 1, "exited with 0, expected Bus error", failed);
	expect("wrong_errno", 1, "got 9 (Bad file descriptor), expected 22", failed);
	expect("wrong_memory", 1, "byte 2 of 3: got 0x63, expected 0x64", failed);
	expect("skips", 77, "skip skips: because of 42\n", "0 passed, 0 failed, 1 skipped\n");
	expect("passes", 0, "ok passes\n", "test_check: 1 passed, 0 failed, 0 skipped\n");
	expect("nobody", 1, "", "test_check: 0 passed, 0 failed, 0 skipped\n");
}

static const struct check_case bad_cases[] = {
	CHECK_CASE(fails_in_a_thread),
	CHECK_CASE(fails_in_a_child),
	CHECK_CASE(crashes),
	CHECK_CASE_LIMIT(hangs, 1),
	CHECK_CASE(wrong_signal),
	CHECK_CASE(no_signal),
	CHECK_CASE(wrong_errno),
	CHECK_CASE(wrong_memory),
	CHECK_CASE(skips),
	CHECK_CASE(passes),
};

static const struct check_case cases[] = {CHECK_CASE_LIMIT(every_failure_is_seen, 60)};

int main(int argc, char **argv)
{
	deliberate = getenv("CHECK_DELIBERATE") != NULL;
	if (deliberate)
		return check_main(argc, argv, bad_cases, sizeof(bad_cases) / sizeof(bad_cases[0]));
	return check_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
