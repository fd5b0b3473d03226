/*
 * One handler of SIGBUS, and one of SIGSEGV, for all in this library that have a use for them.
 * Floor 1. Each may answer a signal; what none of them does goes to the handler that was there
 * before, under the mask that it asked for, or to what the signal does by default.
 *
 * The handler is there while anyone wants it. Where the program has put its own in place after it,
 * and may call this one from there, this one stays where it is, and whoever wants it next gets
 * another one on top: each passes on to what it replaced, and so there are no circles.
 *
 * SIGBUS is handled on the stack of the thread, and not on an alternative one: these are often made
 * for little more than the kernel's own frame, and a cluster is decoded here.
 */
#ifndef LR_SIGNALS_H
#define LR_SIGNALS_H

#include <signal.h>
#include <stdbool.h>

#include "error.h"

/* In the order in which they are asked. */
enum lr_signals_client { LR_SIGNALS_INLINE, LR_SIGNALS_TOUCH, LR_SIGNALS_CLIENTS };

/* True: it was answered. All signals are blocked. It may leave by siglongjmp. */
typedef bool lr_signals_answer(int number, const siginfo_t *info, void *context);

/* `number` is SIGBUS or SIGSEGV. LR_ERR_LIMIT: the program has put too many handlers of its own in
 * place between ours. */
int lr_signals_get(int number, enum lr_signals_client client, lr_signals_answer *answer);
void lr_signals_put(int number, enum lr_signals_client client);
/* In a forked child, where whoever was in here does not exist. */
void lr_signals_reset(void);

#endif
