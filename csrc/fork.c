/*
 * fork(): a child does not inherit the registration with userfaultfd, and would read zeros for what
 * the parent had not loaded. So it gets a userfaultfd and a pager of its own before fork() returns
 * in it, and what is missing there comes from the image, whatever becomes of the parent.
 *
 * Lazy regions are MADV_DONTFORK but for the moment of a fork(): a child that is made without these
 * handlers finds nothing at their addresses, rather than zeros.
 *
 * The handler before fork() must not keep the pager from its work. fork() goes on to wait for locks
 * of the C library, whose holders may wait for a page: fwrite() of a lazy buffer, say, with another
 * thread in fflush(NULL). So the pager works on while the child's copy is made, and what it changes
 * is such that a copy of it is good at any moment:
 *  - a page is settled when it was installed, and before anything that its owner does with it later
 *    is read; in a child that does not know of it yet, the page is there;
 *  - pieces are edited in a table that is not in use (pieces.h);
 *  - all that happened to the memory before the fork() is waited for (lr_target_sync).
 */
#include <sys/mman.h>
#include <unistd.h>

#include "follow.h"
#include "pieces.h"
#include "session.h"
#include "witness.h"

/* Held from before a fork() until after it, in which no session or range comes or goes. */
static pthread_mutex_t sessions_lock = PTHREAD_MUTEX_INITIALIZER;
static struct lr_session *sessions;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void advise(struct lr_target *target, int advice)
{
	struct lr_pieces *table;

	lr_target_sync(target);
	pthread_mutex_lock(&target->lock);
	table = lr_pieces_current(target);
	for (uint32_t i = 0; i < table->count; i++)
		madvise((void *)(uintptr_t)table->items[i].start,
			table->items[i].end - table->items[i].start, advice);
	pthread_mutex_unlock(&target->lock);
}

static bool any_piece(struct lr_target *target, struct lr_piece *ret_piece)
{
	const struct lr_pieces *table;
	bool is_there;

	pthread_mutex_lock(&target->lock);
	table = lr_pieces_current(target);
	is_there = table->count > 0;
	if (is_there)
		*ret_piece = table->items[0];
	pthread_mutex_unlock(&target->lock);
	return is_there;
}

/* In a child of a bare clone, its parent's sessions have no memory: what lies at their addresses is
 * the child's own affair, and no child of it may have the image put there. */
static void forget_others(void)
{
	pid_t pid = getpid();

	for (struct lr_session **at = &sessions; *at;)
		if ((*at)->pid == pid)
			at = &(*at)->next;
		else
			*at = (*at)->next;
}

static void before_fork(void)
{
	pthread_mutex_lock(&sessions_lock);
	forget_others();
	for (struct lr_session *session = sessions; session; session = session->next) {
		struct lr_piece piece;

		/* What is being unmapped or moved now must not be so in the child's table: its
		 * memory may be somebody else's by then. No lock of the C library is held yet. */
		if (any_piece(&session->target, &piece))
			lr_target_settle_down(&session->target, piece.start);
		lr_witness_begin(&session->target);
		/* Sequentially consistent, and before lr_target_sync: partner of begin_reading. */
		atomic_store(&session->target.is_forking, true);
		advise(&session->target, MADV_DOFORK);
	}
}

/* Somebody may unmap part of a region, and map something of his own there, of which the pager reads
 * only after this: that must not be kept from children. */
static void keep_from_children(struct lr_target *target)
{
	struct lr_piece piece;

	target->is_advised = true;
	advise(target, MADV_DONTFORK);
	/* The C library's locks are free again: it may be waited. */
	if (any_piece(target, &piece))
		lr_target_settle_down(target, piece.start);
	target->is_advised = false;
}

static void after_fork(void)
{
	for (struct lr_session *session = sessions; session; session = session->next) {
		atomic_store(&session->target.is_forking, false);
		keep_from_children(&session->target);
		lr_witness_end(&session->target);
	}
	pthread_mutex_unlock(&sessions_lock);
}

static void forbid(uint64_t start, uint64_t end)
{
	mprotect((void *)(uintptr_t)start, end - start, PROT_NONE);
}

/* The copy was made between two edits of the table: nothing of it may be trusted but that what may
 * be a piece must not be touched. */
static void forbid_all(struct lr_target *target)
{
	for (int i = 0; i < 2; i++)
		for (uint32_t j = 0; j < target->tables[i].count; j++)
			forbid(target->tables[i].items[j].start, target->tables[i].items[j].end);
}

static bool is_whole(struct lr_target *target)
{
	struct lr_pieces *table = lr_pieces_current(target);

	return atomic_load(&table->version) == atomic_load(&table->version_after);
}

/* Without a pager: what is missing must not be zeros. */
static void fence_all(struct lr_target *target)
{
	lr_uffd_close(&target->uffd);
	for (uint32_t i = 0; i < target->image->info.region_count; i++)
		lr_loader_fence_rest(target, &target->ranges[i]);
}

/* Register the pieces that came along. */
static void register_all(struct lr_target *target)
{
	struct lr_pieces *table = lr_pieces_current(target);

	/* What the parent's pager is still to read of, it will; nothing of that kind comes here. */
	target->unmapped_count = 0;
	for (uint32_t i = 0; i < table->count; i++) {
		struct lr_piece *piece = &table->items[i];
		uint64_t bytes = piece->end - piece->start;
		int code;

		piece->untold = 0;
		/* Whoever was about to unmap it does not exist here; whoever had unmapped it had no
		 * use for it any more, nor may it be what is there now. */
		lr_range_change(piece->range, LR_RANGE_SUSPENDED, LR_RANGE_ACTIVE);
		if (lr_range_state(piece->range) != LR_RANGE_ACTIVE)
			continue;
		code = lr_uffd_register(&target->uffd, piece->start, bytes, NULL);
		if (code == LR_OK)
			madvise((void *)(uintptr_t)piece->start, bytes, MADV_DONTFORK);
		else if (code == LR_ERR_NOMEM)
			forbid(piece->start, piece->end);
	}
}

/* Let go of what is the parent's, and claim the regions. Threads of the parent do not exist here,
 * and what they held or were changing is as they left it: locks are made anew. False where the
 * session cannot be the child's: then what is missing must not be touched. */
static bool take_over(struct lr_session *session)
{
	struct lr_target *target = &session->target;
	struct lr_uffd parents = target->uffd;

	pthread_mutex_init(&target->lock, NULL);
	pthread_mutex_init(&session->feeds_lock, NULL);
	atomic_store(&target->reading, 0);
	atomic_store(&target->is_forking, false);
	lr_fill_abandon(&session->fill);
	lr_populate_close(session);
	lr_inline_abandon(&session->in_thread);
	lr_pager_abandon(&session->pager);
	/* A copy of it here would keep the parent's pages missing after the parent's last one is
	 * closed, and whoever touches them then would wait for good. */
	target->uffd.device = -1;
	lr_uffd_close(&target->uffd);
	if (!is_whole(target) || !target->witness) {
		forbid_all(target);
		return false;
	}
	lr_witness_hear(target, session->pid);
	lr_witness_close(target);
	atomic_store(&target->is_witnessed, false);
	if (lr_uffd_open_like(&target->uffd, &parents, NULL) < 0) {
		fence_all(target);
		return false;
	}
	register_all(target);
	return true;
}

/* Buffers and a pager of the child's own. */
static bool start(struct lr_session *session)
{
	struct lr_target *target = &session->target;
	int code = lr_session_start(session, NULL);

	if (code < 0)
		fence_all(target);
	else
		lr_pager_wait_ready(&session->pager);
	return code == LR_OK;
}

static void after_fork_in_child(void)
{
	pid_t pid = getpid();

	pthread_mutex_init(&sessions_lock, NULL);
	lr_inline_reset();
	/* All, before anything is mapped for one of them: what another's table says of memory that
	 * did not come along would be done to that. */
	for (struct lr_session *session = sessions; session; session = session->next)
		if (take_over(session))
			session->pid = pid;
	for (struct lr_session **at = &sessions; *at;) {
		struct lr_session *session = *at;

		if (session->pid == pid && !start(session))
			session->pid = 0;
		/* One that could not be made the child's own is nobody's: no child of the child may
		 * try. */
		if (session->pid == pid)
			at = &session->next;
		else
			*at = session->next;
	}
}

static void install_handlers(void)
{
	pthread_atfork(before_fork, after_fork, after_fork_in_child);
}

void lr_fork_watch(struct lr_session *session)
{
	session->next = sessions;
	sessions = session;
}

void lr_fork_forget(struct lr_session *session)
{
	for (struct lr_session **at = &sessions; *at; at = &(*at)->next)
		if (*at == session) {
			*at = session->next;
			break;
		}
}

void lr_fork_taken(const struct lr_session *by, uint64_t start, uint64_t end)
{
	for (struct lr_session *session = sessions; session; session = session->next)
		if (session != by)
			lr_follow_taken(&session->target, start, end);
}

void lr_fork_block(void)
{
	pthread_once(&once, install_handlers);
	pthread_mutex_lock(&sessions_lock);
}

bool lr_fork_try_block(void)
{
	return pthread_mutex_trylock(&sessions_lock) == 0;
}

void lr_fork_unblock(void)
{
	pthread_mutex_unlock(&sessions_lock);
}
