/* The thread that watches a service, and looks for the next one when it is gone. */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "attach.h"
#include "stats.h"
#include "thread.h"

/* How long to sleep at most: nobody can ring if the program closed the bell. */
#define IDLE_MS 2000
/* Between two attempts to find the next service. */
#define RETRY_MS 20
/* While somebody unmaps, and nobody may be there to be told. */
#define DRAIN_MS 5

void lr_attach_set_state(struct lr_attachment *attachment, uint32_t state)
{
	/* Release: partner of the acquire in lr_attachment_get_state. */
	atomic_store_explicit(&attachment->state, state, memory_order_release);
	syscall(SYS_futex, &attachment->state, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static bool is_ending(const struct lr_attachment *attachment)
{
	/* Acquire: partner of the release in lr_detach. */
	return atomic_load_explicit(&attachment->is_ending, memory_order_acquire);
}

static bool is_stopping(const struct lr_attachment *attachment)
{
	return atomic_load_explicit(&attachment->is_stopping, memory_order_acquire);
}

/* Have descriptors of this thread's own, and nothing but what it needs (see pager.c). */
static void keep_descriptors(struct lr_attachment *attachment)
{
#ifdef __SANITIZE_THREAD__
	/* It takes numbers of two tables for the same descriptors. */
	attachment->is_shared = true;
#else
	int own[] = {attachment->uffd.fd, attachment->connection, attachment->state_fd,
		     attachment->event_fd};

	attachment->is_shared = !lr_thread_keep(own, sizeof(own) / sizeof(own[0]));
#endif
}

static void hang_up(struct lr_attachment *attachment)
{
	if (attachment->connection >= 0)
		close(attachment->connection);
	attachment->connection = -1;
}

/* All was loaded, and the memory is no longer registered. Children may have it. */
static void become_plain(struct lr_attachment *attachment)
{
	pthread_mutex_lock(&attachment->lock);
	for (uint32_t i = 0; i < attachment->info.region_count; i++) {
		const struct lr_attached *place = &attachment->places[i];

		if (place->start && !place->is_gone)
			madvise((void *)(uintptr_t)place->start, place->bytes, MADV_DOFORK);
	}
	pthread_mutex_unlock(&attachment->lock);
	lr_attach_set_state(attachment, LR_ATTACHMENT_COMPLETE);
}

/* What the service says: LR_OK to listen on, LR_ERR_CLOSED when all is said, LR_ERR_GONE. */
static int listen_to(struct lr_attachment *attachment)
{
	struct lr_talk talk = {
		.fd = attachment->connection,
		.deadline_ns = lr_clock_ns() + attachment->deadline_ms * 1000000ull,
		.is_given_up = &attachment->is_stopping,
	};
	struct lr_wire_head head;

	if (lr_talk_receive(&talk, &head, sizeof(head), NULL) < 0 || head.first != LR_WIRE_VERSION)
		return LR_ERR_GONE;
	/* Said again, by who does not know whether it was said before. */
	if (memcmp(head.magic, LR_WIRE_SERVED, LR_WIRE_MAGIC_BYTES) == 0)
		return LR_OK;
	if (memcmp(head.magic, LR_WIRE_COMPLETE, LR_WIRE_MAGIC_BYTES) != 0)
		return LR_ERR_GONE;
	become_plain(attachment);
	return LR_ERR_CLOSED;
}

/* One attempt to be served by whoever listens there now. */
static int ask_again(struct lr_attachment *attachment, struct lr_talk *talk)
{
	struct lr_refused refused = {0};
	int code = lr_talk_connect(talk, &attachment->address);

	if (code == LR_OK)
		code = lr_attach_hello(attachment, talk, &refused);
	if (code == LR_OK) {
		/* Whoever got the userfaultfd may install from then on: it must be known whether he
		 * does, for lr_detach must wait until he has read that it unmaps. */
		talk->is_given_up = &attachment->is_stopping;
		code = lr_attach_hand_over(attachment, talk, &refused);
		talk->is_given_up = &attachment->is_ending;
	}
	if (code < 0) {
		lr_talk_close(talk);
		return code;
	}
	attachment->connection = talk->fd;
	return LR_OK;
}

/* Go on with the next service. Also where it refuses, another may come that does not. False at the
 * deadline. */
static bool resume(struct lr_attachment *attachment)
{
	struct lr_talk talk = {
		.fd = -1,
		.deadline_ns = lr_clock_ns() + attachment->deadline_ms * 1000000ull,
		.is_given_up = &attachment->is_ending,
	};

	lr_attach_set_state(attachment, LR_ATTACHMENT_RESUMING);
	hang_up(attachment);
	do {
		if (ask_again(attachment, &talk) == LR_OK) {
			atomic_fetch_add(&attachment->resumes, 1);
			lr_attach_set_state(attachment, LR_ATTACHMENT_SERVED);
			return true;
		}
	} while (lr_talk_pause(&talk, RETRY_MS));
	return false;
}

/* Nobody else has the userfaultfd: what is still said by it is answered here, to the end. */
static void serve_fenced(struct lr_attachment *attachment)
{
	struct pollfd waits[2] = {
		{.fd = attachment->uffd.fd, .events = POLLIN},
		{.fd = attachment->event_fd, .events = POLLIN},
	};

	while (!is_stopping(attachment)) {
		uint64_t count;

		lr_attach_drain(attachment, LR_DRAIN_ANSWER);
		if (poll(waits, 2, is_ending(attachment) ? DRAIN_MS : IDLE_MS) > 0
		    && waits[1].revents && read(attachment->event_fd, &count, sizeof(count)) < 0)
			continue; /* somebody else's number */
	}
}

/* lr_detach unmaps what is registered, and waits until the service has read so. Where there is
 * none, or none that does so within the deadline, it is read here. */
static void see_off(struct lr_attachment *attachment)
{
	uint64_t begin_ns = lr_clock_ns();

	while (!is_stopping(attachment)) {
		if (attachment->connection < 0
		    || lr_clock_ns() - begin_ns > attachment->deadline_ms * 1000000ull)
			lr_attach_drain(attachment, LR_DRAIN_LEAVE);
		else if (poll(&(struct pollfd){.fd = attachment->connection, .events = POLLIN}, 1,
			      0) > 0
			 && listen_to(attachment) != LR_OK)
			hang_up(attachment);
		poll(&(struct pollfd){.fd = attachment->event_fd, .events = POLLIN}, 1, DRAIN_MS);
	}
}

/* Until there is nothing to watch any more: then true, or at lr_detach false. */
static bool watch(struct lr_attachment *attachment)
{
	while (!is_ending(attachment)) {
		struct pollfd waits[2] = {
			{.fd = attachment->connection, .events = POLLIN},
			{.fd = attachment->event_fd, .events = POLLIN},
		};
		int code = LR_OK;

		if (poll(waits, 2, IDLE_MS) > 0 && waits[0].revents)
			code = listen_to(attachment);
		if (code == LR_ERR_CLOSED)
			return true;
		if (code == LR_OK || resume(attachment) || is_ending(attachment))
			continue;
		lr_attach_fence(attachment);
		lr_attach_set_state(attachment, LR_ATTACHMENT_FENCED);
		serve_fenced(attachment);
		return true;
	}
	return false;
}

/* The descriptors of this thread, or before Linux 5.9 those of the program. */
static void close_own(struct lr_attachment *attachment)
{
	hang_up(attachment);
	lr_uffd_close(&attachment->uffd);
	if (attachment->state_fd >= 0)
		close(attachment->state_fd);
	attachment->state_fd = -1;
}

static void *run(void *argument)
{
	struct lr_attachment *attachment = argument;

	prctl(PR_SET_NAME, "lazyrestore");
	keep_descriptors(attachment);
	lr_flag_raise(&attachment->is_ready);
	if (!watch(attachment))
		see_off(attachment);
	close_own(attachment);
	return NULL;
}

int lr_attach_watch(struct lr_attachment *attachment)
{
	/* What the watcher has, the program has no use for, nor its children. The numbers stay, for
	 * they are the watcher's. */
	int passed[] = {attachment->uffd.fd, attachment->connection, attachment->state_fd};
	int error = lr_thread_start(&attachment->watcher, run, attachment);

	if (error)
		return error == ENOMEM ? LR_ERR_NOMEM : LR_ERR_LIMIT;
	attachment->is_running = true;
	lr_flag_wait(&attachment->is_ready);
	for (int i = 0; i < 3 && !attachment->is_shared; i++)
		close(passed[i]);
	return LR_OK;
}

void lr_attach_stop(struct lr_attachment *attachment)
{
	if (attachment->is_running) {
		/* Release: partner of the acquire in is_stopping. */
		atomic_store_explicit(&attachment->is_stopping, true, memory_order_release);
		lr_attach_ring(attachment);
		pthread_join(attachment->watcher, NULL);
	} else {
		close_own(attachment);
	}
	attachment->is_running = false;
}

bool lr_attach_has_bell(const struct lr_attachment *attachment)
{
	static const char name[] = "anon_inode:[eventfd]";
	char link[48], found[sizeof(name)];

	if (attachment->event_fd < 0)
		return false;
	snprintf(link, sizeof(link), "/proc/thread-self/fd/%d", attachment->event_fd);
	return readlink(link, found, sizeof(found)) == sizeof(name) - 1
	       && memcmp(found, name, sizeof(name) - 1) == 0;
}

void lr_attach_ring(struct lr_attachment *attachment)
{
	uint64_t one = 1;

	if (lr_attach_has_bell(attachment) && write(attachment->event_fd, &one, sizeof(one)) < 0)
		return; /* it rings already */
}
