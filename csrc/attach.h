/*
 * Memory of this process that a service restores: who owns what. Floor 5; knows nothing of images.
 *
 * The caller's thread connects, maps, registers and hands over; then a watcher takes the
 * descriptors over, in a table of its own, and the caller's has none of them left but the bell. So
 * a program that closes all of its descriptors loses nothing, and a child inherits neither the
 * connection nor the userfaultfd.
 *
 * The pager is in another process. Memory is unmapped while it is still registered: then the kernel
 * tells the pager, which installs nothing there from then on, and whoever unmaps waits until it has
 * read so. (If the registration went first, a page that was on its way could land in what another
 * userfaultfd serves at that address next: the kernel asks only for any.)
 */
#ifndef LR_ATTACH_H
#define LR_ATTACH_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <unistd.h>

#include "attach_wire.h"
#include "talk.h"
#include "uffd.h"

struct lr_attached {
	uint64_t start; /* 0: not mapped */
	uint64_t bytes; /* whole pages */
	bool is_owned;  /* mapped here */
	bool is_gone;   /* under the lock: nothing is done to it any more */
};

struct lr_refused {
	uint32_t code; /* enum lr_refusal */
	char text[512];
};

struct lr_attachment {
	struct sockaddr_un address;
	uint32_t deadline_ms;
	uint32_t flags;
	uint32_t host_page;
	struct lr_attachment_info info;
	struct lr_region_info *regions;
	char *names; /* each terminated */
	uint8_t *metadata;
	uint64_t metadata_bytes;
	struct lr_attached *places; /* one a region */
	struct lr_uffd uffd;
	int connection;
	int state_fd;     /* what the service knows of the pages; for whoever serves next */
	int event_fd;     /* rings the watcher */
	uint8_t *request; /* LRRANGES, as it is sent each time */
	size_t request_bytes;
	_Atomic uint32_t state; /* enum lr_attachment_state; waited for */
	_Atomic uint32_t resumes;

	pthread_mutex_t lock; /* of is_gone, and of what is done to memory that was not asked for */
	bool is_fenced;       /* under it */
	pthread_t watcher;
	bool is_running;
	bool is_shared; /* the watcher has the program's descriptors: before Linux 5.9 */
	_Atomic uint32_t is_ready;
	_Atomic bool is_ending; /* lr_detach has begun: no resuming */
	_Atomic bool is_stopping;
	pid_t pid;
	struct lr_attachment *next; /* in attach_fork.c's list */
};

/* False in a child. */
static inline bool lr_attach_is_mine(const struct lr_attachment *attachment)
{
	return attachment->pid == getpid();
}

/* attach_hello.c. Both return LR_OK or a code; LR_ERR_REFUSED with what was said in *refused. */
/* Ask for the table and take it; where it was taken before, the same is expected. */
int lr_attach_hello(struct lr_attachment *attachment, struct lr_talk *talk,
		    struct lr_refused *refused);
/* Hand over, and keep the state that comes back. */
int lr_attach_hand_over(struct lr_attachment *attachment, struct lr_talk *talk,
			struct lr_refused *refused);
/* Trying again may help: nobody is there, or whoever was there went away. */
bool lr_attach_may_retry(int code);

/* attach_fence.c: for the watcher, when nobody else has the userfaultfd. */
/* Read what waits to be read, and answer faults: with zeros what was given up since all was
 * fenced, or not yet, or never. */
enum lr_drain { LR_DRAIN_LEAVE, LR_DRAIN_ANSWER };
void lr_attach_drain(struct lr_attachment *attachment, enum lr_drain how);
void lr_attach_fence(struct lr_attachment *attachment);

/* attach_watch.c */
int lr_attach_watch(struct lr_attachment *attachment);
void lr_attach_stop(struct lr_attachment *attachment);
void lr_attach_ring(struct lr_attachment *attachment);
/* False where the program closed it, and has another file by its number. */
bool lr_attach_has_bell(const struct lr_attachment *attachment);
void lr_attach_set_state(struct lr_attachment *attachment, uint32_t state);

/* attach_fork.c: in a child it is closed, and nothing may be touched where its memory was. */
void lr_attach_fork_block(void);
void lr_attach_fork_unblock(void);
/* Between the two. */
void lr_attach_fork_watch(struct lr_attachment *attachment);
void lr_attach_fork_forget(struct lr_attachment *attachment);

#endif
