/*
 * fork(): a child does not inherit the registration, and would read zeros for what the parent had
 * not loaded. So lazy regions are MADV_DONTFORK, and in a child made by fork() their addresses are
 * held by memory without access: a touch gives SIGSEGV, not zeros; and the memory object that the
 * child inherited may unmap its range without hitting something that was mapped there since.
 */
#include <sys/mman.h>
#include <unistd.h>

#include "session.h"

#ifndef MAP_FIXED_NOREPLACE /* Linux 4.17 */
#define MAP_FIXED_NOREPLACE 0x100000
#endif

static pthread_mutex_t sessions_lock = PTHREAD_MUTEX_INITIALIZER;
static struct lr_session *sessions;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Held across fork so that the child finds the lists whole. Both locks are only ever held for
 * moments. */
static void before_fork(void)
{
	pthread_mutex_lock(&sessions_lock);
	for (struct lr_session *session = sessions; session; session = session->next)
		pthread_mutex_lock(&session->target.lock);
}

static void after_fork(void)
{
	for (struct lr_session *session = sessions; session; session = session->next)
		pthread_mutex_unlock(&session->target.lock);
	pthread_mutex_unlock(&sessions_lock);
}

static void after_fork_in_child(void)
{
	for (struct lr_session *session = sessions; session; session = session->next) {
		/* A copy of it here would keep the parent's pages missing after the parent's last
		 * one is closed, and whoever touches them then would wait for good. */
		lr_uffd_close(&session->target.uffd);
		for (uint32_t i = 0; i < session->target.attached; i++) {
			const struct lr_range *range = session->target.by_address[i];

			mmap((void *)(uintptr_t)range->start, range->bytes, PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1,
			     0);
		}
	}
	after_fork();
	sessions = NULL;
}

static void install_handlers(void)
{
	pthread_atfork(before_fork, after_fork, after_fork_in_child);
}

void lr_fork_watch(struct lr_session *session)
{
	pthread_once(&once, install_handlers);
	pthread_mutex_lock(&sessions_lock);
	session->next = sessions;
	sessions = session;
	pthread_mutex_unlock(&sessions_lock);
}

void lr_fork_forget(struct lr_session *session)
{
	pthread_mutex_lock(&sessions_lock);
	for (struct lr_session **at = &sessions; *at; at = &(*at)->next)
		if (*at == session) {
			*at = session->next;
			break;
		}
	pthread_mutex_unlock(&sessions_lock);
}
