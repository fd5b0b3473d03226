#include "listen.h"

#include <fcntl.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

#include "children.h"
#include "follow.h"
#include "keep.h"
#include "together.h"
#include "witness.h"

/* How often 50 microseconds (and the timer's slack) may be waited for a fork(). */
#define PUT_OFF_MAX 200u
/* Of 20 microseconds, and the timer's slack. */
#define QUIET_TRIES 10

static void keep(struct lr_pager *pager, const struct lr_uffd_message *fault, uint64_t read_ns)
{
	uint64_t page = fault->start & ~(uint64_t)(pager->target->host_page - 1);

	if (pager->waiting_count == LR_WAITING_MAX) {
		if (page < pager->dropped_low)
			pager->dropped_low = page;
		if (page + pager->target->host_page > pager->dropped_high)
			pager->dropped_high = page + pager->target->host_page;
		return;
	}
	pager->waiting[pager->waiting_count++] = (struct lr_waiting){
		.address = fault->start,
		.read_ns = read_ns,
		.thread = fault->thread,
		.is_write = fault->is_write,
	};
}

/* Until it is done: what it takes may not be there at once. False where the session ends before
 * that: the message stays where a successor finds it. */
static bool apply_fork(struct lr_pager *pager, const struct lr_uffd_message *message)
{
	struct lr_target *target = pager->target;
	struct timespec pause = {.tv_nsec = 1000000};
	int code;

	if (!target->takes_children)
		return true;
	/* It has what its parent's has, whose maker may not have minded. */
	fcntl(message->child, F_SETFD, FD_CLOEXEC);
	while ((code = lr_keep_child(target, message->child, target->kept->told + 1)) < 0) {
		if (atomic_load_explicit(&pager->is_stopping, memory_order_relaxed))
			return false;
		nanosleep(&pause, NULL);
	}
	lr_keep_told(target);
	if (code == LR_KEEP_NOTHING)
		close(message->child);
	else if (!lr_children_any_held(target))
		lr_target_notify(target);
	return true;
}

static bool apply(struct lr_pager *pager, const struct lr_uffd_message *message)
{
	struct lr_target *target = pager->target;

	if (message->kind == LR_UFFD_FORK)
		return apply_fork(pager, message);
	if (!target->is_remote)
		lr_witness_note(target, message);
	if (message->kind != LR_UFFD_REMOVE)
		lr_together_note(target, message);
	lr_follow(target, message);
	if (target->kept && message->kind != LR_UFFD_REMOVE)
		lr_keep_told(target);
	/* Whoever waited there for a page waits for good, unless he looks again. */
	if (message->kind != LR_UFFD_REMOVE)
		lr_uffd_wake(&target->uffd, message->start, message->end - message->start);
	return true;
}

/* Do what was read, in order. */
static void apply_all(struct lr_pager *pager, const struct lr_uffd_message *messages, int count)
{
	bool is_done = true;

	for (int i = 0; i < count && is_done; i++)
		if (messages[i].kind != LR_UFFD_FAULT)
			is_done = apply(pager, &messages[i]);
	if (pager->target->kept && is_done)
		lr_keep_done(pager->target);
}

/* Odd: whoever gave memory up goes on from the read, and must not get ahead of what is noted of it
 * here. Least of all into the copy of the memory that a fork() is about to make: so nothing is read
 * while one is under way. But it may wait for a lock of the C library whose holder waits for a
 * page: then this goes on. */
static void begin_reading(struct lr_pager *pager)
{
	struct timespec pause = {.tv_nsec = 50000};

	for (;;) {
		atomic_fetch_add(&pager->target->reading, 1);
		if (!atomic_load(&pager->target->is_forking)) {
			pager->put_off = 0;
			return;
		}
		if (pager->put_off == PUT_OFF_MAX)
			return;
		pager->put_off++;
		atomic_fetch_add(&pager->target->reading, 1);
		nanosleep(&pause, NULL);
	}
}

static bool is_left(const struct lr_uffd_message *messages, int count, uint64_t address)
{
	for (int i = 0; i < count; i++)
		if ((messages[i].kind == LR_UFFD_UNMAP || messages[i].kind == LR_UFFD_REMAP)
		    && address >= messages[i].start && address < messages[i].end)
			return true;
	return false;
}

/* Keep the faults that were read, but none where memory was unmapped or moved away: whoever waited
 * there was waked, and asks again if he is still there. Answered late, his fault would be one of
 * memory that is nobody's, and the address may be another userfaultfd's by now: the kernel asks
 * only for any. */
static void keep_faults(struct lr_pager *pager, const struct lr_uffd_message *messages, int count)
{
	uint64_t read_ns = count > 0 ? lr_clock_ns() : 0;
	uint32_t kept = 0;

	for (uint32_t i = 0; i < pager->waiting_count; i++)
		if (!is_left(messages, count, pager->waiting[i].address))
			pager->waiting[kept++] = pager->waiting[i];
	pager->waiting_count = kept;
	for (int i = 0; i < count; i++)
		if (messages[i].kind == LR_UFFD_FAULT
		    && !is_left(messages, count, messages[i].start))
			keep(pager, &messages[i], read_ns);
}

/* No page can be put anywhere until what is under way is over, so that is waited for, for a moment.
 * It may be that a message of it is to be read first. */
static void end_together(struct lr_target *target)
{
	struct timespec pause = {.tv_nsec = 20000};
	struct pollfd ready = {.fd = target->uffd.fd, .events = POLLIN};

	for (int tries = 0; tries < QUIET_TRIES; tries++) {
		if (lr_together_end(target))
			lr_target_notify(target);
		if (!lr_children_any_held(target) || poll(&ready, 1, 0) != 0)
			return;
		nanosleep(&pause, NULL);
	}
}

/* How many may be read. */
static int room_of(struct lr_target *target)
{
	uint32_t room = lr_children_room(target);

	return room < LR_UFFD_MESSAGES_MAX ? (int)room : LR_UFFD_MESSAGES_MAX;
}

int lr_listen(struct lr_pager *pager)
{
	struct lr_target *target = pager->target;
	struct lr_uffd_message messages[LR_UFFD_MESSAGES_MAX];
	int room, count, total = 0;

	end_together(target);
	do {
		bool is_shared;

		room = room_of(target);
		if (room == 0)
			return -1;
		begin_reading(pager);
		/* Where others install too, nothing is read between their look and the page.
		 * Sequentially consistent, as is begin_reading: partner of lr_pager_share. */
		is_shared = atomic_load(&target->is_shared);
		if (is_shared)
			pthread_mutex_lock(&pager->loader.busy);
		count = target->kept ? lr_keep_read(target, messages, room)
				     : lr_uffd_read(&target->uffd, messages, room);
		apply_all(pager, messages, count);
		if (is_shared)
			pthread_mutex_unlock(&pager->loader.busy);
		atomic_fetch_add(&target->reading, 1);
		keep_faults(pager, messages, count);
		total += count > 0 ? count : 0;
		/* (A peer may have as many threads as it likes do nothing but this.) */
	} while (count == room && !atomic_load_explicit(&pager->is_stopping, memory_order_relaxed));
	end_together(target);
	/* No descriptor is to be had for a child's userfaultfd. */
	return count < 0 && total == 0 && target->takes_children ? -1 : total;
}
