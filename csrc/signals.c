#include "signals.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#define LEVELS_MAX 8u

/* A signal's handlers of ours, of which each passes on to what it replaced. */
struct chain {
	struct sigaction before[LEVELS_MAX];
	unsigned levels;
	unsigned users[LR_SIGNALS_CLIENTS];
	_Atomic(lr_signals_answer *) answers[LR_SIGNALS_CLIENTS];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct chain chains[2];

static struct chain *chain_of(int number)
{
	return &chains[number == SIGBUS ? 0 : 1];
}

/* The mask that the handler before would have been called under. */
static void set_mask(int number, const struct sigaction *action, const void *context)
{
	const ucontext_t *interrupted = context;
	sigset_t was, mask;

	sigemptyset(&was);
	/* The kernel's are shorter than the C library's, and nothing follows. */
	memcpy(&was, &interrupted->uc_sigmask, _NSIG / 8);
	sigorset(&mask, &was, &action->sa_mask);
	if (!(action->sa_flags & SA_NODEFER))
		sigaddset(&mask, number);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
}

static void pass_on(struct sigaction *before, int number, siginfo_t *info, void *context)
{
	struct sigaction action = *before;

	if (!(action.sa_flags & SA_SIGINFO)
	    && (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN)) {
		/* The kernel's own: the instruction is repeated, and kills, as it would have,
		 * ignored or not. */
		if (info->si_code > 0 || action.sa_handler == SIG_DFL)
			signal(number, SIG_DFL);
		/* One that was sent is sent again, and comes when this one is done with. */
		if (info->si_code <= 0 && action.sa_handler == SIG_DFL)
			raise(number);
		return;
	}
	if (action.sa_flags & SA_RESETHAND)
		*before = (struct sigaction){.sa_handler = SIG_DFL};
	set_mask(number, &action, context);
	if (action.sa_flags & SA_SIGINFO)
		action.sa_sigaction(number, info, context);
	else
		action.sa_handler(number);
}

static void handle(unsigned level, int number, siginfo_t *info, void *context)
{
	struct chain *chain = chain_of(number);

	for (unsigned i = 0; i < LR_SIGNALS_CLIENTS; i++) {
		/* Acquire: partner of the release in lr_signals_get. */
		lr_signals_answer *answer =
			atomic_load_explicit(&chain->answers[i], memory_order_acquire);

		if (answer && answer(number, info, context))
			return;
	}
	pass_on(&chain->before[level], number, info, context);
}

#define HANDLER(level)                                                                             \
	static void handle_##level(int number, siginfo_t *info, void *context)                     \
	{                                                                                          \
		handle(level, number, info, context);                                              \
	}
HANDLER(0)
HANDLER(1)
HANDLER(2)
HANDLER(3)
HANDLER(4)
HANDLER(5)
HANDLER(6)
HANDLER(7)

static void (*const handlers[LEVELS_MAX])(int, siginfo_t *, void *) = {
	handle_0, handle_1, handle_2, handle_3, handle_4, handle_5, handle_6, handle_7,
};

/* Whether it is one of ours that the kernel would call. */
static bool is_on_top(int number)
{
	struct sigaction current;

	sigaction(number, NULL, &current);
	if (!(current.sa_flags & SA_SIGINFO))
		return false;
	for (unsigned i = 0; i < LEVELS_MAX; i++)
		if (current.sa_sigaction == handlers[i])
			return true;
	return false;
}

static int put_on_top(int number, struct chain *chain)
{
	struct sigaction action = {
		.sa_sigaction = handlers[chain->levels % LEVELS_MAX],
		/* Not deferred: what handlers before ask for is set when they are called. */
		.sa_flags = SA_SIGINFO | SA_NODEFER | (number == SIGBUS ? 0 : SA_ONSTACK),
	};

	if (chain->levels == LEVELS_MAX)
		return LR_ERR_LIMIT;
	sigfillset(&action.sa_mask);
	/* Known before it is called for the first time. */
	sigaction(number, NULL, &chain->before[chain->levels]);
	sigaction(number, &action, NULL);
	chain->levels++;
	return LR_OK;
}

int lr_signals_get(int number, enum lr_signals_client client, lr_signals_answer *answer)
{
	struct chain *chain = chain_of(number);
	int code = LR_OK;

	pthread_mutex_lock(&lock);
	/* Release: partner of the acquire in handle. Before the handler is there: it may be called
	 * at once. */
	atomic_store_explicit(&chain->answers[client], answer, memory_order_release);
	if (!is_on_top(number))
		code = put_on_top(number, chain);
	if (code == LR_OK)
		chain->users[client]++;
	pthread_mutex_unlock(&lock);
	return code;
}

void lr_signals_put(int number, enum lr_signals_client client)
{
	struct chain *chain = chain_of(number);
	unsigned users = 0;

	pthread_mutex_lock(&lock);
	chain->users[client]--;
	for (unsigned i = 0; i < LR_SIGNALS_CLIENTS; i++)
		users += chain->users[i];
	if (users == 0 && chain->levels > 0 && is_on_top(number))
		sigaction(number, &chain->before[--chain->levels], NULL);
	pthread_mutex_unlock(&lock);
}

void lr_signals_reset(void)
{
	pthread_mutex_init(&lock, NULL);
}
