#include "guard.h"

#include <execinfo.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "board.h"

struct escape {
	sigjmp_buf to;
	uintptr_t start;
	uintptr_t end;
};

static _Thread_local struct escape *volatile escape __attribute__((tls_model("initial-exec")));

static void handle(int number, siginfo_t *info, void *context)
{
	struct escape *own = escape;
	uintptr_t address = (uintptr_t)info->si_addr;
	void *frames[32];
	sigset_t none;

	(void)context;
	/* The kernel may name the page only. */
	if (own && info->si_code > 0 && address >= (own->start & ~(uintptr_t)4095)
	    && address < own->end) {
		/* ThreadSanitizer blocks all signals in a handler, whatever was asked for. */
		sigemptyset(&none);
		pthread_sigmask(SIG_SETMASK, &none, NULL);
		siglongjmp(own->to, number);
	}
	/* Where it was: for addr2line. */
	backtrace_symbols_fd(frames, backtrace(frames, 32), STDERR_FILENO);
	fail("unexpected signal %d (code %d) at %p", number, info->si_code, info->si_addr);
}

void guard_open(void)
{
	struct sigaction action = {
		.sa_sigaction = handle,
		.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK,
	};

	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
}

int guard_read(const uint64_t *memory, uint64_t *buffer, unsigned words)
{
	struct escape own = {.start = (uintptr_t)memory, .end = (uintptr_t)(memory + words)};
	int raised = sigsetjmp(own.to, 0);

	if (raised == 0) {
		escape = &own;
		for (unsigned i = 0; i < words; i++)
			buffer[i] = __atomic_load_n(memory + i, __ATOMIC_RELAXED);
	}
	escape = NULL;
	return raised;
}

int guard_write(uint64_t *memory, const uint64_t *buffer, unsigned words)
{
	struct escape own = {.start = (uintptr_t)memory, .end = (uintptr_t)(memory + words)};
	int raised = sigsetjmp(own.to, 0);

	if (raised == 0) {
		escape = &own;
		for (unsigned i = 0; i < words; i++)
			__atomic_store_n(memory + i, buffer[i], __ATOMIC_RELAXED);
	}
	escape = NULL;
	return raised;
}
