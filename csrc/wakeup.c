/*
 * What waking a thread costs on this machine: two threads hand a token back and forth through
 * eventfds, each asleep while the other has it. On two cores, each of which has nothing else to do
 * and may halt; on the two with a thread at idle priority on each, so that none halts; and on one.
 * That is what a demand fault does twice, and what dominates it where cores halt.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "error.h"
#include "stats.h"

#define ROUNDS_MAX 4000

struct token {
	int fds[2];
	int core; /* of the echo */
	atomic_int is_over;
	atomic_int is_started;
	uint32_t round_ns[ROUNDS_MAX];
	uint32_t rounds;
	uint64_t limit_ns;
};

static void bind_to(int core)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET((size_t)core, &one);
	sched_setaffinity(0, sizeof(one), &one);
}

static void give(int fd)
{
	uint64_t one = 1;

	while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

static void take(int fd)
{
	uint64_t count;

	while (read(fd, &count, sizeof(count)) < 0 && errno == EINTR)
		;
}

static void *echo(void *argument)
{
	struct token *token = argument;

	bind_to(token->core);
	for (;;) {
		take(token->fds[0]);
		if (atomic_load(&token->is_over))
			return NULL;
		give(token->fds[1]);
	}
}

struct spinner {
	struct token *token;
	int core;
};

/* Keeps a core from halting. At idle priority it gives way to all else. */
static void *spin(void *argument)
{
	const struct spinner *spinner = argument;
	struct sched_param none = {0};

	bind_to(spinner->core);
	/* Where that is refused it does not run at all: it would be in the way. */
	if (sched_setscheduler(0, SCHED_IDLE, &none) < 0)
		return NULL;
	atomic_fetch_add(&spinner->token->is_started, 1);
	while (!atomic_load_explicit(&spinner->token->is_over, memory_order_relaxed))
		;
	return NULL;
}

struct job {
	struct token *token;
	int core;
};

static void *hand_over(void *argument)
{
	struct job *job = argument;
	struct token *token = job->token;
	uint64_t begin_ns, end_ns;

	bind_to(job->core);
	begin_ns = lr_clock_ns();
	end_ns = begin_ns + token->limit_ns;
	while (token->rounds < ROUNDS_MAX && begin_ns < end_ns) {
		uint64_t now_ns;

		give(token->fds[0]);
		take(token->fds[1]);
		now_ns = lr_clock_ns();
		token->round_ns[token->rounds++] = (uint32_t)(now_ns - begin_ns);
		begin_ns = now_ns;
	}
	atomic_store(&token->is_over, 1);
	give(token->fds[0]);
	return NULL;
}

static int compare(const void *left, const void *right)
{
	uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;

	return (a > b) - (a < b);
}

/* The median time of one hand-over, which is half a round; 0 where it could not be measured. */
static uint64_t median_ns(struct token *token)
{
	if (token->rounds == 0)
		return 0;
	qsort(token->round_ns, token->rounds, sizeof(token->round_ns[0]), compare);
	return token->round_ns[token->rounds / 2] / 2;
}

static int measure(struct token *token, int core, int other, bool is_kept_awake,
		   uint64_t *ret_handover_ns)
{
	struct spinner spinners[2] = {{token, core}, {token, other}};
	pthread_t echoing, handing, spinning[2];
	struct job job = {token, core};
	int started = 0, error;

	token->core = other;
	token->rounds = 0;
	atomic_store(&token->is_over, 0);
	atomic_store(&token->is_started, 0);
	error = pthread_create(&echoing, NULL, echo, token);
	if (error)
		return error;
	while (is_kept_awake && started < 2
	       && pthread_create(&spinning[started], NULL, spin, &spinners[started]) == 0)
		started++;
	error = pthread_create(&handing, NULL, hand_over, &job);
	if (error) {
		atomic_store(&token->is_over, 1);
		give(token->fds[0]);
	} else {
		pthread_join(handing, NULL);
	}
	pthread_join(echoing, NULL);
	while (started > 0)
		pthread_join(spinning[--started], NULL);
	if (error)
		return error;
	if (!is_kept_awake || atomic_load(&token->is_started) == 2)
		*ret_handover_ns = median_ns(token);
	return 0;
}

/* The first and the last of the cores that this thread may use: the least likely to share one. */
static int two_cores(int *ret_first, int *ret_last)
{
	cpu_set_t mine;
	int count = 0;

	if (sched_getaffinity(0, sizeof(mine), &mine) < 0)
		return 0;
	for (int core = 0; core < CPU_SETSIZE; core++) {
		if (!CPU_ISSET((size_t)core, &mine))
			continue;
		if (count++ == 0)
			*ret_first = core;
		*ret_last = core;
	}
	return count;
}

int lr_wakeup_cost(uint64_t limit_ns, struct lr_wakeup_cost *ret_cost)
{
	struct token *token = calloc(1, sizeof(*token));
	int first = 0, last = 0, cores = two_cores(&first, &last), error = 0;
	sigset_t all, before;

	memset(ret_cost, 0, sizeof(*ret_cost));
	if (!token)
		return LR_ERR_NOMEM;
	token->limit_ns = limit_ns / 3;
	token->fds[0] = eventfd(0, EFD_CLOEXEC);
	token->fds[1] = eventfd(0, EFD_CLOEXEC);
	if (token->fds[0] < 0 || token->fds[1] < 0)
		error = errno;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (!error)
		error = measure(token, first, first, false, &ret_cost->one_core_ns);
	if (!error && cores > 1)
		error = measure(token, first, last, false, &ret_cost->two_cores_ns);
	if (!error && cores > 1)
		error = measure(token, first, last, true, &ret_cost->kept_awake_ns);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	for (int i = 0; i < 2; i++)
		if (token->fds[i] >= 0)
			close(token->fds[i]);
	free(token);
	return error ? lr_problem_from_errno(NULL, error) : LR_OK;
}
