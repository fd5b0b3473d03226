#include "pager.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "follow.h"
#include "huge.h"
#include "install.h"
#include "jobs.h"
#include "keep.h"
#include "witness.h"

/* How long to wait for memory, or for a message that is about to come. */
#define RETRY_MS 1
/* How long to sleep at most: whoever has a job cannot ring if the program closed the bell. */
#define IDLE_MS 2000
/* How often 50 microseconds (and the timer's slack) may be waited for a fork(). */
#define PUT_OFF_MAX 200u

/* Count it, and put it into the trace. */
static void note_answer(struct lr_pager *pager, const struct lr_waiting *fault,
			const struct lr_range *range, uint64_t offset,
			const struct lr_outcome *outcome)
{
	uint64_t latency_ns = outcome->touched_ns - fault->read_ns;
	struct lr_trace_record record = {
		.time_ns = fault->read_ns,
		.address = fault->address,
		.offset = offset,
		.bytes = outcome->bytes,
		.latency_ns = (uint32_t)(latency_ns < UINT32_MAX ? latency_ns : UINT32_MAX),
		.thread = fault->thread,
		.region = range->number,
		.action = (uint16_t)outcome->action,
		.is_write = fault->is_write,
	};

	pager->loader.answers[fault->is_write][outcome->action]++;
	lr_histogram_add(&pager->loader.service, latency_ns);
	lr_trace_put(&pager->trace, &record);
}

/* Registered memory that is no region's: its owner made a mapping longer, or left an old place
 * mapped when he moved it. That is zeros, as it would be for any memory. */
static int serve_elsewhere(struct lr_pager *pager, uint64_t page)
{
	struct lr_target *target = pager->target;
	struct lr_piece piece = {.start = page, .end = page + target->host_page};
	struct lr_installed installed;
	int code = LR_ERR_SYSTEM;

	/* Unless there were more pieces than could be noted. */
	if (!target->is_lost)
		code = lr_install_zeros(target, page, target->host_page, &installed);
	if (code == LR_ERR_SYSTEM)
		code = lr_install_fence(target, &piece, page, target->host_page);
	return code < 0 ? code : LR_OK;
}

int lr_pager_serve_piece(struct lr_pager *pager, struct lr_hands *hands, struct lr_waiting *fault,
			 const struct lr_piece *piece, struct lr_outcome *ret_outcome)
{
	uint64_t page = fault->address & ~(uint64_t)(pager->target->host_page - 1);
	uint64_t offset = piece->offset + (page - piece->start);
	struct lr_loader *loader = &pager->loader;
	int code;

	loader->faults += !fault->is_counted;
	fault->is_counted = true;
	code = pager->target->is_huge
		       ? lr_huge_fault(loader, hands, piece->range, offset, ret_outcome)
		       : lr_loader_fault(loader, hands, piece->range, offset, ret_outcome);
	if (code == LR_OK)
		note_answer(pager, fault, piece->range, offset, ret_outcome);
	return code;
}

/* What a job has ready is not to be decoded. */
static bool serve_from_job(struct lr_pager *pager, const struct lr_waiting *fault,
			   const struct lr_piece *piece, uint64_t page)
{
	uint64_t offset = piece->offset + (page - piece->start);
	struct lr_outcome outcome = {.action = LR_ACTION_COPY};
	struct lr_loader *loader = &pager->loader;
	bool is_done = false;

	for (struct lr_job *job = pager->jobs; job && !is_done; job = job->next)
		is_done = job->serve && job->range == piece->range
			  && job->serve(loader, job, offset, &outcome.bytes);
	if (!is_done)
		return false;
	outcome.touched_ns = lr_clock_ns();
	if (loader->target->record)
		lr_record_note(loader->target->record,
			       lr_target_cluster(loader->target, piece->range, offset));
	loader->faults += !fault->is_counted;
	note_answer(pager, fault, piece->range, offset, &outcome);
	return true;
}

/* LR_OK when it is done with; LR_LATER or LR_ERR_NOMEM when it is to be tried again. */
static int serve(struct lr_pager *pager, struct lr_waiting *fault)
{
	uint64_t page = fault->address & ~(uint64_t)(pager->target->host_page - 1);
	struct lr_loader *loader = &pager->loader;
	struct lr_outcome outcome;
	struct lr_piece piece;
	int code = LR_OK;

	pthread_mutex_lock(&loader->busy);
	if (!lr_target_find(pager->target, page, &piece)) {
		code = serve_elsewhere(pager, page);
	} else if (lr_range_state(piece.range) == LR_RANGE_ACTIVE
		   && !serve_from_job(pager, fault, &piece, page)) {
		code = lr_pager_serve_piece(pager, &loader->hands, fault, &piece, &outcome);
		if (code == LR_OK)
			lr_near_note(&pager->near, fault->thread, fault->read_ns,
				     outcome.touched_ns);
	}
	/* Else it is suspended, or being attached: who makes it active or gone wakes all. */
	pthread_mutex_unlock(&loader->busy);
	return code == LR_LATER || code == LR_ERR_NOMEM ? code : LR_OK;
}

/* Serve what waits. Where a message is to be read first, the rest waits on; where there is no
 * memory for one, others may need none. */
static int serve_waiting(struct lr_pager *pager)
{
	uint32_t kept = 0;
	int result = LR_OK;

	for (uint32_t i = 0; i < pager->waiting_count; i++) {
		struct lr_waiting fault = pager->waiting[i];
		int code = result == LR_LATER ? LR_LATER : serve(pager, &fault);

		if (code == LR_OK)
			continue;
		result = code;
		pager->waiting[kept++] = fault;
	}
	pager->waiting_count = kept;
	if (pager->waiting_count == 0 && pager->dropped_low < pager->dropped_high) {
		/* Whoever still waits there asks again. */
		lr_uffd_wake(&pager->target->uffd, pager->dropped_low,
			     pager->dropped_high - pager->dropped_low);
		pager->dropped_low = UINT64_MAX;
		pager->dropped_high = 0;
	}
	return result;
}

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

static void apply(struct lr_target *target, const struct lr_uffd_message *message)
{
	if (!target->is_remote)
		lr_witness_note(target, message);
	lr_follow(target, message);
	if (target->kept && message->kind != LR_UFFD_REMOVE)
		lr_keep_told(target);
	/* Whoever waited there for a page waits for good, unless he looks again. */
	if (message->kind != LR_UFFD_REMOVE)
		lr_uffd_wake(&target->uffd, message->start, message->end - message->start);
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

/* Read all messages there are: what they say of the memory is done at once, faults are kept.
 * Returns how many were read. */
static int read_messages(struct lr_pager *pager)
{
	struct lr_target *target = pager->target;
	struct lr_uffd_message messages[LR_UFFD_MESSAGES_MAX];
	int count, total = 0;

	do {
		bool is_shared;

		begin_reading(pager);
		/* Where others install too, nothing is read between their look and the page.
		 * Sequentially consistent, as is begin_reading: partner of lr_pager_share. */
		is_shared = atomic_load(&target->is_shared);
		if (is_shared)
			pthread_mutex_lock(&pager->loader.busy);
		count = target->kept ? lr_keep_read(target, messages, LR_UFFD_MESSAGES_MAX)
				     : lr_uffd_read(&target->uffd, messages, LR_UFFD_MESSAGES_MAX);
		for (int i = 0; i < count; i++)
			if (messages[i].kind != LR_UFFD_FAULT)
				apply(target, &messages[i]);
		if (target->kept)
			lr_keep_done(target);
		if (is_shared)
			pthread_mutex_unlock(&pager->loader.busy);
		atomic_fetch_add(&target->reading, 1);
		keep_faults(pager, messages, count);
		total += count > 0 ? count : 0;
		/* (A peer may have as many threads as it likes do nothing but this.) */
	} while (count == LR_UFFD_MESSAGES_MAX
		 && !atomic_load_explicit(&pager->is_stopping, memory_order_relaxed));
	return total;
}

/* As much of the stack as serving a fault takes: at a memory limit it must be there. */
void lr_pager_have_stack(void)
{
	volatile uint8_t room[48u << 10];

	for (size_t i = 0; i < sizeof(room); i += 4096)
		room[i] = 0;
}

/* A program that closes all descriptors, as one does that becomes a daemon, must not end what
 * serves its memory. */
static void keep_descriptors(struct lr_pager *pager)
{
	struct lr_target *target = pager->target;
	int own[] = {
		target->uffd.fd,  target->image->source.fd,
		pager->event_fd,  pager->trace.event_fd,
		target->event_fd, target->kept ? target->kept->fd : -1,
	};

	pager->has_own_descriptors = lr_thread_keep(own, sizeof(own) / sizeof(own[0]));
}

void lr_pager_undo_blocking(struct lr_pager *pager)
{
	struct timespec pause = {.tv_nsec = 1000000};

	/* He may do it again and again. */
	nanosleep(&pause, NULL);
	lr_uffd_undo_blocking(&pager->target->uffd);
}

bool lr_pager_serve(struct lr_pager *pager)
{
	read_messages(pager);
	return serve_waiting(pager) != LR_OK;
}

static void *run(void *argument)
{
	struct lr_pager *pager = argument;
	struct pollfd waits[2] = {
		{.fd = pager->target->uffd.fd, .events = POLLIN},
		{.fd = pager->event_fd, .events = POLLIN},
	};
	uint64_t count;

	/* By itself: pthread_setname_np of another thread takes three system calls. */
	prctl(PR_SET_NAME, "lazyrestore");
	lr_pager_have_stack();
	keep_descriptors(pager);
	/* Where threads answer for themselves, no faults come here. */
	if (!pager->target->is_shared)
		lr_near_start(pager);
	lr_flag_raise(&pager->is_ready);
	/* Looked at even while faults keep coming: a thread that touches a region which was
	 * detached but left mapped asks again and again. Relaxed: nothing else is read by it, and
	 * the eventfd brings it here. */
	while (!atomic_load_explicit(&pager->is_stopping, memory_order_relaxed)) {
		int read_count = read_messages(pager), code;

		lr_pager_take_jobs(pager);
		code = serve_waiting(pager);

		if (code == LR_OK && !lr_pager_has_jobs(pager) && lr_near_is_wanted(&pager->near)
		    && !atomic_load_explicit(&pager->is_filling, memory_order_relaxed))
			lr_near_lend(pager);
		lr_pager_take_jobs(pager);
		if (pager->jobs && code != LR_LATER)
			code = lr_pager_do_job(pager);
		if (read_count > 0 || (code != LR_LATER && pager->jobs))
			continue;
		if (poll(waits, 2, pager->waiting_count || pager->jobs ? RETRY_MS : IDLE_MS) <= 0)
			continue;
		if (waits[0].revents & ~POLLIN)
			lr_pager_undo_blocking(pager);
		if (waits[1].revents && read(pager->event_fd, &count, sizeof(count)) < 0)
			continue; /* somebody else's number: there are jobs, or none */
	}
	lr_near_stop(&pager->near);
	return NULL;
}

static int start_thread(struct lr_pager *pager)
{
	int error = lr_thread_start(&pager->thread, run, pager);

	if (error)
		return error == ENOMEM ? LR_ERR_NOMEM : LR_ERR_LIMIT;
	pager->is_running = true;
	/* Until it has descriptors of its own: the caller may close what it has at once. */
	lr_flag_wait(&pager->is_ready);
	return LR_OK;
}

int lr_pager_start(struct lr_pager *pager, struct lr_target *target, uint32_t trace_records,
		   struct lr_problem *ret_problem)
{
	int code;

	memset(pager, 0, sizeof(*pager));
	pager->target = target;
	pager->trace.event_fd = -1;
	pager->dropped_low = UINT64_MAX;
	pager->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (pager->event_fd < 0)
		return lr_problem_from_errno(ret_problem, errno);
	code = lr_trace_open(&pager->trace, trace_records);
	if (code == LR_OK)
		code = lr_loader_open(&pager->loader, target);
	if (code == LR_OK)
		code = start_thread(pager);
	if (code < 0) {
		lr_pager_stop(pager);
		return lr_problem_set(ret_problem, code, 0, LR_NOWHERE, LR_NOWHERE);
	}
	return LR_OK;
}

void lr_pager_restart(struct lr_pager *pager)
{
	struct timespec pause = {.tv_nsec = 1000000};

	pager->is_running = false;
	/* Without it others would wait for their jobs for good. */
	do
		atomic_store(&pager->is_ready, 0);
	while (start_thread(pager) < 0 && nanosleep(&pause, NULL) == 0);
}

void lr_pager_abandon(struct lr_pager *pager)
{
	pager->is_running = false;
	if (pager->event_fd >= 0)
		close(pager->event_fd);
	pager->event_fd = -1;
	lr_loader_close(&pager->loader);
	lr_trace_close(&pager->trace);
}

void lr_pager_stop(struct lr_pager *pager)
{
	if (pager->is_running) {
		atomic_store_explicit(&pager->is_stopping, true, memory_order_relaxed);
		lr_pager_ring(pager);
		pthread_join(pager->thread, NULL);
	}
	lr_pager_abandon(pager);
}
