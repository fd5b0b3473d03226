/*
 * A child of fork() has nothing of an attachment: its memory is MADV_DONTFORK, and its descriptors
 * are the watcher's. What is left to do is to keep anything else from being mapped where the memory
 * was, for pointers to it are still about: a touch gives SIGSEGV, and whoever unmaps it there takes
 * nothing from others. What is complete is ordinary memory, and the child's.
 */
#include <sys/mman.h>
#include <unistd.h>

#include "attach.h"

#ifndef MAP_FIXED_NOREPLACE /* Linux 4.17 */
#define MAP_FIXED_NOREPLACE 0x100000
#endif

/* Held over a fork(), and while descriptors come that a child must not have. */
static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static struct lr_attachment *list;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void before_fork(void)
{
	pthread_mutex_lock(&list_lock);
}

static void after_fork(void)
{
	pthread_mutex_unlock(&list_lock);
}

static void keep_out(const struct lr_attached *place)
{
	void *wanted = (void *)(uintptr_t)place->start;
	void *memory =
		mmap(wanted, place->bytes, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);

	if (memory != MAP_FAILED && memory != wanted)
		munmap(memory, place->bytes);
}

static void close_copy(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void leave(struct lr_attachment *attachment)
{
	bool is_complete = atomic_load(&attachment->state) == LR_ATTACHMENT_COMPLETE;

	pthread_mutex_init(&attachment->lock, NULL);
	if (lr_attach_has_bell(attachment))
		close(attachment->event_fd);
	attachment->event_fd = -1;
	/* Else the child's table never had them. */
	if (!attachment->is_running || attachment->is_shared) {
		close_copy(&attachment->uffd.fd);
		close_copy(&attachment->uffd.device);
		close_copy(&attachment->connection);
		close_copy(&attachment->state_fd);
	}
	attachment->uffd.fd = attachment->uffd.device = -1;
	attachment->connection = attachment->state_fd = -1;
	attachment->is_running = false;
	if (is_complete) {
		attachment->pid = getpid();
		return;
	}
	atomic_store(&attachment->state, LR_ATTACHMENT_CLOSED);
	/* None: another thread was waiting for the table when this one forked. */
	for (uint32_t i = 0; attachment->places && i < attachment->info.region_count; i++)
		if (attachment->places[i].start && !attachment->places[i].is_gone)
			keep_out(&attachment->places[i]);
}

static void after_fork_in_child(void)
{
	pid_t pid = getpid();

	pthread_mutex_init(&list_lock, NULL);
	for (struct lr_attachment *at = list; at; at = at->next)
		if (at->pid != pid && atomic_load(&at->state) != LR_ATTACHMENT_CLOSED)
			leave(at);
}

static void install_handlers(void)
{
	pthread_atfork(before_fork, after_fork, after_fork_in_child);
}

void lr_attach_fork_block(void)
{
	pthread_once(&once, install_handlers);
	pthread_mutex_lock(&list_lock);
}

void lr_attach_fork_unblock(void)
{
	pthread_mutex_unlock(&list_lock);
}

void lr_attach_fork_watch(struct lr_attachment *attachment)
{
	attachment->next = list;
	list = attachment;
}

void lr_attach_fork_forget(struct lr_attachment *attachment)
{
	for (struct lr_attachment **at = &list; *at; at = &(*at)->next)
		if (*at == attachment) {
			*at = attachment->next;
			break;
		}
}
