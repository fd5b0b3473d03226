#include "inline.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "elsewhere.h"
#include "install.h"
#include "mapping.h"
#include "signals.h"

#define SESSIONS_MAX 1024u
/* How often a lock is tried before sleeping: some microseconds, as long as a page takes. */
#define SPINS_MAX 200
/* How often to give way before sleeping, and to wait for a message to be read before returning. */
#define YIELDS_MAX   16
#define ATTEMPTS_MAX 64
#define PAUSE_NS     50000
/* For memory. */
#define LONG_PAUSE_NS 1000000
/* For a range that is being attached, or that its owner is about to unmap; woken before. */
#define CHANGE_NS 10000000

/* Where a signal handler finds the sessions: never freed, so that it may look without a lock. */
struct lr_inline_entry {
	_Atomic(struct lr_inline *) session;
	/* Threads that use it: raised before `session` is read. Both sequentially consistent:
	 * either they see that it has gone, or who closes it sees them. */
	_Atomic uint32_t users;
	/* All of its pieces that were touched lie within: to pass others by. Not exact. */
	_Atomic uint64_t low;
	_Atomic uint64_t high;
};
static struct lr_inline_entry entries[SESSIONS_MAX];
/* Entries that were ever in use: a bound for the search. */
static _Atomic uint32_t entry_count;

/* One page that is zero in a child, however it was made (MADV_WIPEONFORK): what is known here of a
 * parent's memory must not be used there. */
static _Atomic(_Atomic uint32_t *) alive;

static _Thread_local uint64_t answered __attribute__((tls_model("initial-exec")));

/* What became of a touch. */
enum verdict {
	AGAIN,    /* it is to be repeated: the page is there, or something was waited for */
	REFUSED,  /* it is fenced, as the kernel would say */
	ELSEWHERE /* no piece of this session lies there */
};

/* ---- Waiting ---- */

static void sleep_ns(long duration_ns)
{
	struct timespec pause = {.tv_nsec = duration_ns};

	nanosleep(&pause, NULL);
}

static void relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#endif
}

static void wait_for_change(_Atomic uint32_t *word, uint32_t value, long limit_ns)
{
	struct timespec limit = {.tv_nsec = limit_ns};

	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, &limit, NULL, 0);
}

void lr_inline_wake(struct lr_range *range)
{
	syscall(SYS_futex, &range->state, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Mostly it is free, or held for some microseconds; to be woken takes longer. */
static void lock(struct lr_pager *pager)
{
	for (int i = 0; i < SPINS_MAX; i++) {
		if (pthread_mutex_trylock(&pager->loader.busy) == 0)
			return;
		relax();
	}
	/* The pager lets those go first who came before its next job. */
	atomic_fetch_add(&pager->wanting, 1);
	pthread_mutex_lock(&pager->loader.busy);
	atomic_fetch_sub(&pager->wanting, 1);
}

/* ---- Entries ---- */

static struct lr_inline *hold(struct lr_inline_entry *entry)
{
	struct lr_inline *in_thread;

	atomic_fetch_add(&entry->users, 1);
	in_thread = atomic_load(&entry->session);
	if (!in_thread)
		atomic_fetch_sub(&entry->users, 1);
	return in_thread;
}

static void let_go(struct lr_inline_entry *entry)
{
	atomic_fetch_sub(&entry->users, 1);
}

/* Relaxed: what they say only saves work. */
static bool may_have(const struct lr_inline_entry *entry, uint64_t address)
{
	return address >= atomic_load_explicit(&entry->low, memory_order_relaxed)
	       && address < atomic_load_explicit(&entry->high, memory_order_relaxed);
}

/* `busy` is held. */
static void widen(struct lr_inline_entry *entry, const struct lr_piece *piece)
{
	if (piece->start < atomic_load_explicit(&entry->low, memory_order_relaxed))
		atomic_store_explicit(&entry->low, piece->start, memory_order_relaxed);
	if (piece->end > atomic_load_explicit(&entry->high, memory_order_relaxed))
		atomic_store_explicit(&entry->high, piece->end, memory_order_relaxed);
}

static uint32_t entries_in_use(void)
{
	return atomic_load_explicit(&entry_count, memory_order_acquire);
}

/* ---- A fault in a session's memory ---- */

/* Look at what lies there, and install: under the lock, so that no message is read in between. */
static int install(struct lr_inline *in_thread, struct lr_pool_slot *slot, struct lr_waiting *fault,
		   uint64_t page, enum verdict *ret_verdict)
{
	struct lr_pager *pager = in_thread->pager;
	struct lr_target *target = pager->target;
	struct lr_outcome outcome;
	struct lr_piece piece;
	int code = LR_OK;

	*ret_verdict = AGAIN;
	lock(pager);
	if (lr_target_find(target, page, &piece)
	    && lr_range_state(piece.range) == LR_RANGE_ACTIVE) {
		uint64_t cluster =
			lr_target_cluster(target, piece.range, piece.offset + (page - piece.start));
		bool was_fenced = lr_pageset_get(&target->clusters, cluster) == LR_STATE_FENCED;

		code = lr_pager_serve_piece(pager, &slot->hands, fault, &piece, &outcome);
		/* The kernel tells a fence by BUS_MCEERR_AR, but not if it was built without
		 * CONFIG_MEMORY_FAILURE: who touches it again must not go round for good. */
		if (code == LR_OK && outcome.action == LR_ACTION_FENCE && was_fenced)
			*ret_verdict = REFUSED;
	}
	pthread_mutex_unlock(&pager->loader.busy);
	return code;
}

static enum verdict serve_with(struct lr_inline *in_thread, struct lr_pool_slot *slot,
			       struct lr_waiting *fault, uint64_t page)
{
	enum verdict verdict;

	for (int i = 0; i < ATTEMPTS_MAX; i++) {
		int code = install(in_thread, slot, fault, page, &verdict);

		if (code == LR_OK)
			return verdict;
		if (code != LR_LATER) {
			sleep_ns(LONG_PAUSE_NS);
			return AGAIN;
		}
		/* The pager is to read a message first, and whoever it is from to go on. Asleep
		 * after a while: they must have a processor even where this thread has real-time
		 * priority. */
		if (i < YIELDS_MAX)
			sched_yield();
		else
			sleep_ns(PAUSE_NS);
	}
	return AGAIN;
}

static enum verdict serve(struct lr_inline *in_thread, struct lr_waiting *fault)
{
	struct lr_target *target = in_thread->pager->target;
	uint64_t page = fault->address & ~(uint64_t)(target->host_page - 1);
	struct lr_pool_slot *slot;
	enum lr_range_state state;
	enum verdict verdict = AGAIN;
	struct lr_piece piece;

	if (!lr_target_find(target, page, &piece))
		return ELSEWHERE;
	state = lr_range_state(piece.range);
	/* All of it has come, and is about to be given back. */
	if (state == LR_RANGE_PLAIN)
		return AGAIN;
	if (state != LR_RANGE_ACTIVE) {
		wait_for_change(&piece.range->state, state, CHANGE_NS);
		return AGAIN;
	}
	slot = lr_pool_take(&in_thread->pool);
	if (!slot)
		return AGAIN;
	lr_hands_prepare(&slot->hands, target, piece.range, piece.offset + (page - piece.start));
	verdict = serve_with(in_thread, slot, fault, page);
	lr_pool_give(&in_thread->pool, slot);
	return verdict;
}

/* ---- A fault that is in no piece that was found ---- */

/* Whether a piece of this session lies there after all: nobody reads of moves meanwhile. */
static bool find_for_sure(struct lr_inline *in_thread, uint64_t page)
{
	struct lr_piece piece;
	bool is_there;

	lock(in_thread->pager);
	is_there = lr_target_find(in_thread->pager->target, page, &piece);
	if (is_there)
		widen(in_thread->entry, &piece);
	pthread_mutex_unlock(&in_thread->pager->loader.busy);
	return is_there;
}

static bool give_zeros(struct lr_inline *in_thread, uint64_t page, uint64_t limit)
{
	bool is_late = false, is_ours;

	lock(in_thread->pager);
	is_ours = !atomic_load(&in_thread->is_closing)
		  && lr_elsewhere_give(in_thread->pager->target, page, limit, &is_late);
	pthread_mutex_unlock(&in_thread->pager->loader.busy);
	if (is_late)
		sleep_ns(PAUSE_NS);
	return is_ours;
}

/* Whether one of any session's does. */
static bool find_in_any(uint64_t page, bool *ret_is_closing)
{
	bool is_there = false;

	for (uint32_t i = 0, count = entries_in_use(); i < count && !is_there; i++) {
		struct lr_inline *in_thread = hold(&entries[i]);

		if (in_thread) {
			is_there = find_for_sure(in_thread, page);
			*ret_is_closing |= atomic_load(&in_thread->is_closing);
			let_go(&entries[i]);
		}
	}
	return is_there;
}

/* True where the touch is to be repeated. */
static bool answer_elsewhere(uint64_t page, bool is_closing)
{
	struct lr_mapping mapping = {0};
	int found = lr_mapping_find(page, &mapping);

	/* Nothing there any more, or nothing that may be touched: the kernel says so itself. A
	 * file, or memory that is shared: its owner's affair. */
	if (found == 0 || (found > 0 && !mapping.is_accessible))
		return true;
	if (found < 0 || !mapping.is_private)
		return false;
	for (uint32_t i = 0, count = entries_in_use(); i < count; i++) {
		struct lr_inline *in_thread = hold(&entries[i]);

		if (in_thread) {
			bool is_ours = give_zeros(in_thread, page, mapping.end);

			let_go(&entries[i]);
			if (is_ours)
				return true;
		}
	}
	/* It was a session's that is being closed: soon it is fenced, or gone. */
	if (is_closing)
		sleep_ns(PAUSE_NS);
	return is_closing;
}

/* ---- The signal ---- */

static bool is_write_in(const void *context)
{
#if defined(__x86_64__)
	return ((const ucontext_t *)context)->uc_mcontext.gregs[REG_ERR] & 2;
#else
	(void)context;
	return false;
#endif
}

/* By what is known without a lock. */
static enum verdict serve_known(struct lr_waiting *fault)
{
	enum verdict verdict = ELSEWHERE;

	for (uint32_t i = 0, count = entries_in_use(); i < count && verdict == ELSEWHERE; i++) {
		struct lr_inline *in_thread = NULL;

		if (may_have(&entries[i], fault->address))
			in_thread = hold(&entries[i]);
		if (!in_thread)
			continue;
		if (in_thread->pager->trace.records)
			fault->thread = (uint32_t)syscall(SYS_gettid);
		verdict = serve(in_thread, fault);
		let_go(&entries[i]);
	}
	return verdict;
}

/* True where the touch is to be repeated. */
static bool answer_fault(struct lr_waiting *fault)
{
	enum verdict verdict = serve_known(fault);
	bool is_closing = false;
	uint64_t page;

	if (verdict != ELSEWHERE)
		return verdict == AGAIN;
	page = fault->address & ~(uint64_t)(sysconf(_SC_PAGESIZE) - 1);
	/* The first touch of a piece, or of one that has just been moved there. */
	if (find_in_any(page, &is_closing))
		return serve_known(fault) != REFUSED;
	return answer_elsewhere(page, is_closing);
}

static bool answer(int number, const siginfo_t *info, void *context)
{
	_Atomic uint32_t *is_alive = atomic_load_explicit(&alive, memory_order_acquire);
	struct lr_waiting fault = {.address = (uint64_t)(uintptr_t)info->si_addr};
	int before = errno, cancel_state;
	bool is_answered;

	(void)number;
	/* Other codes: somebody sent it, or the page is fenced, or broken. */
	if (info->si_code != BUS_ADRERR || !is_alive
	    || !atomic_load_explicit(is_alive, memory_order_relaxed))
		return false;
	/* Reading the image is a point where a thread may be cancelled: not with what is held here.
	 */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
	fault.read_ns = lr_clock_ns();
	fault.is_write = is_write_in(context);
	is_answered = answer_fault(&fault);
	answered += is_answered;
	pthread_setcancelstate(cancel_state, NULL);
	errno = before;
	return is_answered;
}

uint64_t lr_inline_answered(void)
{
	return answered;
}

/* ---- Sessions coming and going ---- */

static int make_alive(void)
{
	_Atomic uint32_t *page = atomic_load(&alive);
	size_t bytes = (size_t)sysconf(_SC_PAGESIZE);

	if (!page) {
		void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (memory == MAP_FAILED)
			return LR_ERR_NOMEM;
		if (madvise(memory, bytes, MADV_WIPEONFORK) < 0) {
			munmap(memory, bytes);
			return LR_ERR_UNSUPPORTED;
		}
		page = memory;
	}
	atomic_store(page, 1);
	/* Release: partner of the acquire in answer. */
	atomic_store_explicit(&alive, page, memory_order_release);
	return LR_OK;
}

/* Sessions come and go one at a time (lr_fork_block). */
static int enter(struct lr_inline *in_thread)
{
	uint32_t slot = 0;

	while (slot < SESSIONS_MAX && atomic_load(&entries[slot].session))
		slot++;
	if (slot == SESSIONS_MAX)
		return LR_ERR_LIMIT;
	in_thread->entry = &entries[slot];
	atomic_store(&entries[slot].low, UINT64_MAX);
	atomic_store(&entries[slot].high, 0);
	atomic_store(&entries[slot].session, in_thread);
	/* Release: partner of the acquire in entries_in_use. */
	if (slot >= atomic_load(&entry_count))
		atomic_store_explicit(&entry_count, slot + 1, memory_order_release);
	return LR_OK;
}

int lr_inline_open(struct lr_inline *in_thread, struct lr_pager *pager)
{
	int code;

	memset(in_thread, 0, sizeof(*in_thread));
	in_thread->pager = pager;
	code = make_alive();
	if (code == LR_OK)
		code = lr_pool_open(&in_thread->pool, pager->target);
	if (code == LR_OK)
		code = lr_signals_get(SIGBUS, LR_SIGNALS_INLINE, answer);
	if (code == LR_OK) {
		code = enter(in_thread);
		if (code < 0)
			lr_signals_put(SIGBUS, LR_SIGNALS_INLINE);
	}
	if (code < 0)
		lr_pool_close(&in_thread->pool);
	return code;
}

void lr_inline_close(struct lr_inline *in_thread)
{
	struct lr_inline_entry *entry = in_thread->entry;

	if (!entry)
		return;
	atomic_store(&entry->session, NULL);
	/* They wait for nothing but each other, the pager, and what is done by now. */
	while (atomic_load(&entry->users) > 0)
		sleep_ns(PAUSE_NS);
	lr_signals_put(SIGBUS, LR_SIGNALS_INLINE);
	lr_pool_close(&in_thread->pool);
	in_thread->entry = NULL;
}

void lr_inline_reset(void)
{
	for (uint32_t i = 0; i < SESSIONS_MAX; i++) {
		atomic_store(&entries[i].session, NULL);
		atomic_store(&entries[i].users, 0);
	}
	lr_signals_reset();
}

void lr_inline_abandon(struct lr_inline *in_thread)
{
	lr_pool_close(&in_thread->pool);
	in_thread->entry = NULL;
}
