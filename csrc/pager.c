#include "pager.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "children.h"
#include "huge.h"
#include "install.h"
#include "jobs.h"
#include "listen.h"

/* How long to wait for memory, or for a message that is about to come. */
#define RETRY_MS 1
/* How long not to sleep at first: who waits for this thread to begin often touches a page at once.
 */
#define AWAKE_NS 300000u
/* How long to look whether the thread has begun, before sleeping. */
#define READY_NS 60000u
/* How long to sleep at most: whoever has a job cannot ring if the program closed the bell. */
#define IDLE_MS 2000
/* What is given of memory that is no region's, where it is aligned to that. */
#define ZEROS_BYTES (64u << 10)

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

/* How much of what is nobody's there is from a page on: where that is what most of the memory is,
 * it is given more at a time. */
static uint64_t zeros_at(struct lr_target *target, uint64_t page)
{
	struct lr_piece next;
	uint64_t end = (page | (ZEROS_BYTES - 1)) + 1;

	if (!target->is_zero_outside || end < page)
		return target->host_page;
	if (lr_target_next(target, page, &next) && next.start < end)
		end = next.start;
	return end - page;
}

static void note_zeros(struct lr_loader *loader, const struct lr_waiting *fault, uint64_t pages)
{
	loader->faults++;
	loader->pages_zeroed += pages;
	loader->answers[fault->is_write][LR_ACTION_ZEROPAGE]++;
	lr_histogram_add(&loader->service, lr_clock_ns() - fault->read_ns);
}

/* Registered memory that is no region's: its owner made a mapping longer, or left an old place
 * mapped when he moved it. That is zeros, as it would be for any memory. */
static int serve_elsewhere(struct lr_pager *pager, const struct lr_waiting *fault, uint64_t page)
{
	struct lr_target *target = pager->target;
	struct lr_piece piece = {.start = page, .end = page + target->host_page};
	struct lr_installed installed = {0};
	int code = LR_ERR_SYSTEM;

	/* Unless there were more pieces than could be noted. */
	if (!target->is_lost)
		code = lr_install_zeros(target, page, zeros_at(target, page), &installed);
	if (installed.pages > 0 && target->is_zero_outside)
		note_zeros(&pager->loader, fault, installed.pages);
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
	/* Not for longer: others who install (lr_pager_do) wake at once who gets a page. */
	if (pager->near.defers_wakes)
		pager->target->uffd.defers_wakes = true;
	if (!lr_target_find(pager->target, page, &piece)) {
		code = serve_elsewhere(pager, fault, page);
	} else if (lr_range_state(piece.range) == LR_RANGE_ACTIVE
		   && !serve_from_job(pager, fault, &piece, page)) {
		code = lr_pager_serve_piece(pager, &loader->hands, fault, &piece, &outcome);
		if (code == LR_OK)
			lr_near_note(&pager->near, fault->thread, fault->read_ns,
				     outcome.touched_ns);
	}
	/* Else it is suspended, or being attached: who makes it active or gone wakes all. */
	if (pager->near.defers_wakes)
		pager->target->uffd.defers_wakes = false;
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

	/* Children's userfaultfds come into the reader's table, and their numbers must mean the
	 * same to others. */
	if (!target->takes_children)
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
	lr_listen(pager);
	return serve_waiting(pager) != LR_OK;
}

/* False where nothing came. */
static bool wait(struct lr_pager *pager, struct pollfd *waits, bool is_blocked)
{
	struct lr_target *target = pager->target;
	bool is_retried =
		pager->waiting_count || pager->jobs || is_blocked || lr_children_any_held(target);

	/* What cannot be read is not waited for either. */
	waits[0].fd = is_blocked ? -1 : target->uffd.fd;
	waits[0].revents = 0;
	if (poll(waits, 2, is_retried ? RETRY_MS : IDLE_MS) > 0)
		return true;
	/* Nobody tells that such a process ended, or executes another program. */
	if (!is_retried && target->is_zero_outside
	    && lr_uffd_is_gone(&target->uffd, target->host_page))
		lr_target_note_gone(target);
	return false;
}

static void *run(void *argument)
{
	struct lr_pager *pager = argument;
	struct pollfd waits[2] = {
		{.fd = pager->target->uffd.fd, .events = POLLIN},
		{.fd = pager->event_fd, .events = POLLIN},
	};
	uint64_t awake_until_ns;
	uint64_t count;

	/* By itself: pthread_setname_np of another thread takes three system calls. */
	prctl(PR_SET_NAME, "lazyrestore");
	keep_descriptors(pager);
	/* Before anyone may miss a page: at a memory limit the pager must not wait for pages of its
	 * own. That is soon done where the last session left its buffers. */
	lr_hands_have(&pager->loader.hands);
	lr_zstd_have(pager->loader.hands.decoder.zstd);
	lr_pager_have_stack();
	lr_flag_raise(&pager->is_ready);
	awake_until_ns = pager->target->is_remote ? 0 : lr_clock_ns() + AWAKE_NS;
	/* Where threads answer for themselves, no faults come here. */
	if (!pager->target->is_shared && !pager->target->takes_children)
		lr_near_allow(pager);
	/* Looked at even while faults keep coming: a thread that touches a region which was
	 * detached but left mapped asks again and again. Relaxed: nothing else is read by it, and
	 * the eventfd brings it here. */
	while (!atomic_load_explicit(&pager->is_stopping, memory_order_relaxed)) {
		int read_count = lr_listen(pager), code;

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
		if (awake_until_ns && lr_clock_ns() < awake_until_ns) {
			sched_yield();
			continue;
		}
		awake_until_ns = 0;
		if (!wait(pager, waits, read_count < 0))
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

void lr_pager_wait_ready(struct lr_pager *pager)
{
	uint64_t begin_ns = lr_clock_ns();

	/* Mostly it is, or in some microseconds: to sleep and be waked takes longer. */
	do {
		/* Acquire: partner of the release in lr_flag_raise. */
		if (atomic_load_explicit(&pager->is_ready, memory_order_acquire))
			return;
		sched_yield();
	} while (lr_clock_ns() - begin_ns < READY_NS);
	lr_flag_wait(&pager->is_ready);
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
