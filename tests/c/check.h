/*
 * check: the harness of the C tests. Include it first: it asks for _GNU_SOURCE.
 *
 *     static void adds(void) { CHECK_EQ(1 + 1, 2); }
 *     static const struct check_case cases[] = { CHECK_CASE(adds), CHECK_CASE_LIMIT(slow, 60) };
 *     CHECK_MAIN(cases)
 *
 * Each case runs in a forked child with a time limit (60 s unless told), so that a crash or a hang
 * is one failed case; whatever processes it leaves behind are killed with it. The first failed
 * check ends its case, from any thread and from any child of the case. Checks may be used in
 * threads; SKIP too.
 *
 *     test_x [--list] [--no-fork] [CASE]...
 *
 * runs the named cases only; --no-fork runs them in this process and aborts at the first failure
 * (for gdb). CHECK_TIME_FACTOR=5 in the environment multiplies the limits (for slow machines;
 * sanitizers have a factor already).
 *
 * Output: "ok NAME", "FAIL NAME: file:line: ...", "skip NAME: reason", then "test_x: N passed, N
 * failed, N skipped". Exit status: 0 nothing failed, 77 everything was skipped, 1 otherwise.
 */
#ifndef LR_TESTS_CHECK_H
#define LR_TESTS_CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct check_case {
	const char *name;
	void (*run)(void);
	int limit_s; /* 0: CHECK_LIMIT_S */
};

#define CHECK_CASE(function)          {#function, function, 0}
#define CHECK_CASE_LIMIT(function, s) {#function, function, s}
#define CHECK_LIMIT_S                 60
#define CHECK_MAIN(cases)                                                                          \
	int main(int argc, char **argv)                                                            \
	{                                                                                          \
		return check_main(argc, argv, cases, sizeof(cases) / sizeof((cases)[0]));          \
	}

/* ---- What a case says ---------------------------------------------------------------- */

#define CHECK_FAIL(...) check_end(CHECK_FAILED, __FILE__, __LINE__, __VA_ARGS__)
#define SKIP(...)       check_end(CHECK_SKIPPED, __FILE__, __LINE__, __VA_ARGS__)

#define CHECK(condition)                                                                           \
	do {                                                                                       \
		if (!(condition))                                                                  \
			CHECK_FAIL("%s", #condition);                                              \
	} while (0)

/* Integers, enums and pointers, compared as 64-bit numbers. */
#define CHECK_EQ(got, expected)                                                                    \
	check_number((intmax_t)(got), (intmax_t)(expected), 1, #got, #expected, __FILE__, __LINE__)
#define CHECK_NE(got, unexpected)                                                                  \
	check_number((intmax_t)(got), (intmax_t)(unexpected), 0, #got, #unexpected, __FILE__,      \
		     __LINE__)

#define CHECK_STR(got, expected)        check_string(got, expected, #got, __FILE__, __LINE__)
#define CHECK_MEM(got, expected, bytes) check_memory(got, expected, bytes, #got, __FILE__, __LINE__)

/* A system call that must work; gives its value. */
#define CHECK_CALL(call) check_call((intmax_t)(call), #call, __FILE__, __LINE__)

/* A system call that must fail with -1 and this errno. */
#define CHECK_ERRNO(call, expected)                                                                \
	do {                                                                                       \
		errno = 0;                                                                         \
		intmax_t check_value_ = (intmax_t)(call);                                          \
		check_errno(check_value_, errno, expected, #call, __FILE__, __LINE__);             \
	} while (0)

/* Run statements in a child of the case, which must die by this signal: CHECK_SIGNAL(SIGSEGV, *p =
 * 1;). */
#define CHECK_SIGNAL(signal_number, ...)                                                           \
	do {                                                                                       \
		pid_t check_pid_ = check_fork(signal_number);                                      \
		if (check_pid_ == 0) {                                                             \
			__VA_ARGS__                                                                \
			_exit(0);                                                                  \
		}                                                                                  \
		check_died(check_pid_, signal_number, __FILE__, __LINE__);                         \
	} while (0)

/* Wait for a child that the case forked by itself: it must end with exit status 0. */
#define CHECK_CHILD(pid) check_child(pid, __FILE__, __LINE__)

/* ---- How it works -------------------------------------------------------------------- */

enum check_outcome { CHECK_PASSED = 0, CHECK_FAILED = 1, CHECK_SKIPPED = 2 };

struct check_state {
	atomic_int outcome; /* the first to change it from CHECK_PASSED writes the message */
	int in_process;
	char message[1000];
};

/* Shared with the child that runs the case, and with its children. */
static struct check_state *check_state;

__attribute__((noreturn, format(printf, 4, 5))) static inline void
check_end(enum check_outcome outcome, const char *file, int line, const char *format, ...)
{
	int passed = CHECK_PASSED;
	if (atomic_compare_exchange_strong(&check_state->outcome, &passed, (int)outcome)) {
		char *at = check_state->message;
		size_t room = sizeof(check_state->message);
		if (outcome == CHECK_FAILED) {
			int used = snprintf(at, room, "%s:%d: ", file, line);
			at += used, room -= (size_t)used;
		}
		va_list arguments;
		va_start(arguments, format);
		vsnprintf(at, room, format, arguments);
		va_end(arguments);
	}
	if (check_state->in_process) {
		fprintf(stderr, "%s\n", check_state->message);
		if (outcome == CHECK_FAILED)
			abort();
		exit(77);
	}
	_exit(100 + (int)outcome);
}

static inline void check_number(intmax_t got, intmax_t expected, int want_equal,
				const char *got_text, const char *expected_text, const char *file,
				int line)
{
	if ((got == expected) != want_equal)
		check_end(CHECK_FAILED, file, line,
			  "%s %s %s: got %jd (%#jx), expected %s%jd (%#jx)", got_text,
			  want_equal ? "==" : "!=", expected_text, got, (uintmax_t)got,
			  want_equal ? "" : "anything but ", expected, (uintmax_t)expected);
}

static inline void check_string(const char *got, const char *expected, const char *text,
				const char *file, int line)
{
	if (!got || strcmp(got, expected) != 0)
		check_end(CHECK_FAILED, file, line, "%s: got \"%s\", expected \"%s\"", text,
			  got ? got : "(null)", expected);
}

static inline void check_memory(const void *got, const void *expected, size_t bytes,
				const char *text, const char *file, int line)
{
	const unsigned char *a = got, *b = expected;
	for (size_t i = 0; i < bytes; i++)
		if (a[i] != b[i])
			check_end(CHECK_FAILED, file, line,
				  "%s: byte %zu of %zu: got %#x, expected %#x", text, i, bytes,
				  a[i], b[i]);
}

static inline intmax_t check_call(intmax_t value, const char *text, const char *file, int line)
{
	if (value == -1)
		check_end(CHECK_FAILED, file, line, "%s: %s", text, strerror(errno));
	return value;
}

static inline void check_errno(intmax_t value, int got, int expected, const char *text,
			       const char *file, int line)
{
	if (value != -1)
		check_end(CHECK_FAILED, file, line, "%s: gave %jd, expected an error: %s", text,
			  value, strerror(expected));
	if (got != expected)
		check_end(CHECK_FAILED, file, line, "%s: got %d (%s), expected %d (%s)", text, got,
			  strerror(got), expected, strerror(expected));
}

/* fork() for a child that is expected to die by a signal: the sanitizers' handlers are taken off,
 * no core is left. */
static inline pid_t check_fork(int signal_number)
{
	fflush(NULL);
	pid_t pid = fork();
	CHECK(pid != -1);
	if (pid == 0) {
		struct rlimit none = {0, 0};
		setrlimit(RLIMIT_CORE, &none);
		signal(SIGSEGV, SIG_DFL);
		signal(SIGBUS, SIG_DFL);
		signal(signal_number, SIG_DFL);
		sigset_t set;
		sigemptyset(&set);
		sigaddset(&set, signal_number);
		sigprocmask(SIG_UNBLOCK, &set, NULL);
	}
	return pid;
}

static inline int check_wait(pid_t pid)
{
	int status;
	while (waitpid(pid, &status, 0) == -1)
		if (errno != EINTR)
			CHECK_FAIL("waitpid: %s", strerror(errno));
	if (WIFEXITED(status) && WEXITSTATUS(status) == 100 + CHECK_SKIPPED)
		_exit(100 + CHECK_SKIPPED);
	return status;
}

static inline void check_died(pid_t pid, int signal_number, const char *file, int line)
{
	int status = check_wait(pid);
	if (WIFEXITED(status))
		check_end(CHECK_FAILED, file, line, "exited with %d, expected %s",
			  WEXITSTATUS(status), strsignal(signal_number));
	if (WTERMSIG(status) != signal_number)
		check_end(CHECK_FAILED, file, line, "died by signal %d (%s), expected %d (%s)",
			  WTERMSIG(status), strsignal(WTERMSIG(status)), signal_number,
			  strsignal(signal_number));
}

static inline void check_child(pid_t pid, const char *file, int line)
{
	int status = check_wait(pid);
	if (WIFSIGNALED(status))
		check_end(CHECK_FAILED, file, line, "child died by signal %d (%s)",
			  WTERMSIG(status), strsignal(WTERMSIG(status)));
	if (WEXITSTATUS(status) != 0)
		check_end(CHECK_FAILED, file, line, "child exited with %d", WEXITSTATUS(status));
}

/* ---- Touching memory that may raise a signal, in this process ------------------------ */

static _Thread_local sigjmp_buf check_touch_escape;

static inline void check_touch_caught(int signal_number)
{
	siglongjmp(check_touch_escape, signal_number);
}

/* Read (or read and write back) one byte. Returns 0, or the signal that this raised: SIGBUS or
 * SIGSEGV. One thread at a time: the handlers belong to the process. */
static inline int check_touch(volatile void *address, int is_write)
{
	struct sigaction caught = {.sa_handler = check_touch_caught}, old_bus, old_segv;
	sigaction(SIGBUS, &caught, &old_bus);
	sigaction(SIGSEGV, &caught, &old_segv);
	int raised = sigsetjmp(check_touch_escape, 1);
	if (raised == 0) {
		volatile unsigned char *byte = address;
		unsigned char value = *byte;
		if (is_write)
			*byte = value;
	}
	sigaction(SIGBUS, &old_bus, NULL);
	sigaction(SIGSEGV, &old_segv, NULL);
	return raised;
}

/* ---- Running ------------------------------------------------------------------------- */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CHECK_SANITIZER_FACTOR 4
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)                            \
	|| __has_feature(memory_sanitizer)
#define CHECK_SANITIZER_FACTOR 4
#endif
#endif
#ifndef CHECK_SANITIZER_FACTOR
#define CHECK_SANITIZER_FACTOR 1
#endif

static inline double check_time_factor(void)
{
	const char *factor = getenv("CHECK_TIME_FACTOR");
	return factor && atof(factor) > 0 ? atof(factor) : 1;
}

static inline int check_limit_ms(const struct check_case *test)
{
	double seconds = test->limit_s ? test->limit_s : CHECK_LIMIT_S;
	return (int)(seconds * check_time_factor() * 1000) * CHECK_SANITIZER_FACTOR;
}

/* Wait for the case's process; kill it and all that it started when the time is over. Gives 0 if it
 * was in time. */
static inline int check_reap(pid_t pid, int limit_ms, int *ret_status)
{
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	struct pollfd ended = {.fd = pidfd, .events = POLLIN};
	int ready;
	do {
		ready = poll(&ended, 1, limit_ms);
	} while (ready == -1 && errno == EINTR);
	if (pidfd == -1 || ready == -1) {
		perror("check: pidfd_open or poll");
		kill(-pid, SIGKILL);
		exit(1);
	}
	close(pidfd);
	kill(-pid,
	     SIGKILL); /* before it is reaped: its number, and the group's, cannot be another's */
	kill(pid, SIGKILL);
	while (waitpid(pid, ret_status, 0) == -1 && errno == EINTR)
		;
	return ready == 0 ? -1 : 0;
}

static inline enum check_outcome check_report(const struct check_case *test, int late, int limit_ms,
					      int status)
{
	int outcome = atomic_load(&check_state->outcome);
	const char *message = check_state->message;
	if (outcome == CHECK_SKIPPED && !late) {
		printf("skip %s: %s\n", test->name, message);
		return CHECK_SKIPPED;
	}
	if (outcome == CHECK_FAILED)
		printf("FAIL %s: %s\n", test->name, message);
	else if (late)
		printf("FAIL %s: not done after %d ms\n", test->name, limit_ms);
	else if (WIFSIGNALED(status))
		printf("FAIL %s: died by signal %d (%s)\n", test->name, WTERMSIG(status),
		       strsignal(WTERMSIG(status)));
	else if (WEXITSTATUS(status) != 0)
		printf("FAIL %s: exited with %d\n", test->name, WEXITSTATUS(status));
	else {
		printf("ok %s\n", test->name);
		return CHECK_PASSED;
	}
	return CHECK_FAILED;
}

static inline enum check_outcome check_run(const struct check_case *test)
{
	atomic_store(&check_state->outcome, CHECK_PASSED);
	check_state->message[0] = '\0';
	if (check_state->in_process) {
		test->run();
		printf("ok %s\n", test->name);
		return CHECK_PASSED;
	}
	fflush(NULL);
	pid_t parent = getpid(), pid = fork();
	if (pid == -1) {
		perror("check: fork");
		exit(1);
	}
	if (pid == 0) {
		setpgid(0, 0);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
		test->run();
		exit(0); /* not _exit: what runs at exit (leak check, coverage) is part of the test
			  */
	}
	setpgid(pid, pid);
	int limit_ms = check_limit_ms(test), status = 0;
	int late = check_reap(pid, limit_ms, &status);
	return check_report(test, late, limit_ms, status);
}

static inline int check_wanted(const struct check_case *test, int argc, char **argv)
{
	int names = 0;
	for (int i = 1; i < argc; i++) {
		if (strncmp(argv[i], "--", 2) == 0)
			continue;
		names++;
		if (strcmp(argv[i], test->name) == 0)
			return 1;
	}
	return names == 0;
}

static inline int check_main(int argc, char **argv, const struct check_case *cases, size_t count)
{
	int tally[3] = {0, 0, 0}, list = 0;
	const char *slash = strrchr(argv[0], '/'), *program = slash ? slash + 1 : argv[0];
	check_state = mmap(NULL, sizeof(*check_state), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (check_state == MAP_FAILED) {
		perror("check: mmap");
		return 1;
	}
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--no-fork") == 0)
			check_state->in_process = 1;
		else if (strcmp(argv[i], "--list") == 0)
			list = 1;
	}
	for (size_t i = 0; i < count; i++) {
		if (!check_wanted(&cases[i], argc, argv))
			continue;
		if (list)
			printf("%s\n", cases[i].name);
		else
			tally[check_run(&cases[i])]++;
		fflush(stdout);
	}
	if (list)
		return 0;
	printf("%s: %d passed, %d failed, %d skipped\n", program, tally[CHECK_PASSED],
	       tally[CHECK_FAILED], tally[CHECK_SKIPPED]);
	if (tally[CHECK_PASSED] + tally[CHECK_FAILED] + tally[CHECK_SKIPPED] == 0) {
		fprintf(stderr, "%s: no case of that name (see --list)\n", program);
		return 1;
	}
	if (tally[CHECK_FAILED] > 0)
		return 1;
	return tally[CHECK_PASSED] == 0 ? 77 : 0;
}

#endif
