#include "operations.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct settings settings;
pthread_rwlock_t changes;
pthread_rwlock_t moves;

/* How often each comes, of 10,000. */
static const unsigned weights[OPS] = {
	[OP_TOUCH] = 3800, [OP_CHECK] = 1500,   [OP_WRITE] = 1500, [OP_POPULATE] = 150,
	[OP_PIPE] = 600,   [OP_DONTNEED] = 500, [OP_FREE] = 200,   [OP_PROTECT] = 400,
	[OP_ADVISE] = 300, [OP_LOCK] = 100,     [OP_UNMAP] = 120,  [OP_REPLACE] = 60,
	[OP_MOVE] = 200,   [OP_STATS] = 100,    [OP_FORK] = 5,     [OP_REOPEN] = 6,
	[OP_WAIT] = 20,    [OP_SWEEP] = 40,
};

void actor_open(struct actor *actor, int thread, int depth)
{
	actor->thread = thread;
	actor->depth = depth;
	/* Nobody else's: a forked child makes its own. */
	if (pipe2(actor->pipe, O_CLOEXEC) < 0)
		fail("no pipe");
}

void actor_close(struct actor *actor)
{
	close(actor->pipe[0]);
	close(actor->pipe[1]);
}

static enum op choose(uint64_t random)
{
	unsigned total = 0, at;

	for (int op = 0; op < OPS; op++)
		total += weights[op];
	at = (unsigned)(random % total);
	for (int op = 0; op < OPS; op++) {
		if (at < weights[op])
			return settings.without & 1u << op ? OP_TOUCH : (enum op)op;
		at -= weights[op];
	}
	return OP_TOUCH;
}

static bool do_touch(struct actor *actor, struct slot *slot, uint64_t random, bool whole)
{
	struct span span;

	if (!pick_any(actor, slot, random, &span))
		return false;
	note(actor, whole ? OP_CHECK : OP_TOUCH, slot, &span, 0);
	if (whole)
		check_page(actor, &span, 0, 0, WORDS);
	else
		check_page(actor, &span, 0, random >> 48 & (WORDS - 1), 1);
	return true;
}

/* As a program does that reads from one end to the other: what the pager does about that is
 * begun after some pages. */
static bool do_sweep(struct actor *actor, struct slot *slot, uint64_t random)
{
	struct span span;
	uint64_t count, end;

	if (!pick_any(actor, slot, random, &span))
		return false;
	end = slot->regions[span.region].count;
	count = 16 + (random >> 40) % 512;
	if (end - span.first > count)
		end = span.first + count;
	for (span.count = end - span.first; span.first < end; span.first++, span.page++) {
		if (!may_read(actor, span.page))
			continue;
		note(actor, OP_SWEEP, slot, &span, 0);
		check_page(actor, &span, 0, random >> 52 & (WORDS - 1), 1);
		span.count = 1;
	}
	return true;
}

static bool on_slot(struct actor *actor, enum op op, struct slot *slot, uint64_t random)
{
	switch (op) {
	case OP_WRITE:
		return do_write(actor, slot, random);
	case OP_POPULATE:
		return do_populate(actor, slot, random);
	case OP_PIPE:
		return do_pipe(actor, slot, random);
	case OP_DONTNEED:
		return do_dontneed(actor, slot, random);
	case OP_FREE:
		return do_free(actor, slot, random);
	case OP_PROTECT:
		return do_protect(actor, slot, random);
	case OP_ADVISE:
		return do_advise(actor, slot, random);
	case OP_LOCK:
		return do_lock(actor, slot, random);
	case OP_UNMAP:
		return do_unmap(actor, slot, random);
	case OP_REPLACE:
		return do_replace(actor, slot, random);
	case OP_MOVE:
		return do_move(actor, slot, random);
	case OP_STATS:
		return do_stats(actor, slot);
	case OP_WAIT:
		return do_wait(actor, slot, random);
	case OP_SWEEP:
		return do_sweep(actor, slot, random);
	default:
		return do_touch(actor, slot, random, op == OP_CHECK);
	}
}

static void reopen(struct actor *actor, struct slot *slot, uint64_t random)
{
	uint64_t next = draw(actor);

	note(actor, OP_REOPEN, slot, NULL, 0);
	if (!actor->is_alone) {
		pthread_rwlock_wrlock(&slot->lock);
		pthread_rwlock_rdlock(&moves);
	}
	slot_close(actor, slot, random);
	slot_open(actor, slot, next);
	if (!actor->is_alone) {
		pthread_rwlock_unlock(&moves);
		pthread_rwlock_unlock(&slot->lock);
	}
}

/* Operations that change nothing of what is known need not keep a fork waiting. */
static bool is_change(enum op op)
{
	return op != OP_TOUCH && op != OP_CHECK && op != OP_POPULATE && op != OP_STATS
	       && op != OP_WAIT && op != OP_SWEEP && op != OP_FORK;
}

static bool is_move(enum op op)
{
	return op == OP_UNMAP || op == OP_REPLACE || op == OP_MOVE;
}

void act(struct actor *actor)
{
	/* As many numbers whatever comes of them, so that a seed always gives the same ones. */
	enum op op = choose(draw(actor));
	uint64_t which = draw(actor), random = draw(actor);
	struct slot *slot = &slots[which % slot_count];
	bool is_done = true, needs_lock = !actor->is_alone;

	/* A child may have been made while all were being ended. */
	if (actor->depth && atomic_load_explicit(&board->failed, memory_order_relaxed))
		fail_claim();
	if (op == OP_REOPEN && !actor->is_alone && slot->keeper != actor->thread)
		op = OP_CHECK;
	if (op == OP_REOPEN && actor->pinned & 1u << slot->number)
		op = OP_CHECK;
	if (!(actor->usable & 1u << slot->number))
		return;
	/* Until it is noted, with the locks that it waits for. */
	row_begin(actor->row, 0);
	if (needs_lock && is_change(op))
		pthread_rwlock_rdlock(&changes);
	if (op == OP_FORK) {
		do_fork(actor, random);
	} else if (op == OP_REOPEN) {
		reopen(actor, slot, random);
	} else {
		if (needs_lock)
			pthread_rwlock_rdlock(&slot->lock);
		if (needs_lock && is_move(op))
			pthread_rwlock_rdlock(&moves);
		is_done = on_slot(actor, op, slot, random);
		if (needs_lock && is_move(op))
			pthread_rwlock_unlock(&moves);
		if (needs_lock)
			pthread_rwlock_unlock(&slot->lock);
	}
	if (needs_lock && is_change(op))
		pthread_rwlock_unlock(&changes);
	count(is_done ? &board->done[op] : &board->refused[op], 1);
	row_end(actor->row, op);
}
