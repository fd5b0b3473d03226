/* Children of a stress run: they check what they inherited, go on for a little, and have children
 * of their own. Some end before their parents and some after; some are killed. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "operations.h"

#define DEPTH_MAX    3
#define CHILDREN_MAX 3

struct child {
	int pid; /* 0: none */
	struct row *row;
	int row_state;
};

enum way { CHILD_WAITED_FOR, CHILD_LEFT, CHILD_KILLED };

/* A thread of a child that reads shared pages meanwhile. */
struct helper {
	pthread_t thread;
	struct actor actor;
	atomic_bool stop;
};

static void *help(void *argument)
{
	struct helper *helper = argument;
	struct slot *slot = NULL;

	for (unsigned i = 0; i < slot_count; i++)
		if (helper->actor.pinned & 1u << i)
			slot = &slots[i];
	while (slot && !atomic_load(&helper->stop)) {
		struct span span;

		if (pick_any(&helper->actor, slot, draw(&helper->actor), &span)
		    && span.page->class == CLASS_SHARED)
			check_page(&helper->actor, &span, 0, 0, WORDS);
	}
	return NULL;
}

static bool start_helper(struct helper *helper, struct actor *actor)
{
	uint32_t first = actor->usable & -actor->usable;

	memset(helper, 0, sizeof(*helper));
	helper->actor.thread = actor->thread;
	helper->actor.is_alone = true;
	helper->actor.depth = actor->depth;
	helper->actor.random = draw(actor);
	helper->actor.pinned = first;
	helper->actor.row = actor->row;
	if (!first || pthread_create(&helper->thread, NULL, help, helper))
		return false;
	actor->pinned = first;
	return true;
}

static void stop_helper(struct helper *helper, struct actor *actor)
{
	atomic_store(&helper->stop, true);
	pthread_join(helper->thread, NULL);
	actor->pinned = 0;
}

/* Read shared pages of the parent's through the kernel. The parent waits for us meanwhile, and
 * keeps the slot open. */
static void read_parent(struct actor *actor, struct slot *slot)
{
	for (unsigned i = 0; i < 50; i++) {
		struct span span;
		struct iovec local = {actor->buffer, PAGE}, remote = {NULL, PAGE};
		ssize_t got;

		if (!pick_any(actor, slot, draw(actor), &span) || span.page->owner != SHARED)
			continue;
		remote.iov_base = span.page->at;
		got = process_vm_readv(getppid(), &local, 1, &remote, 1, 0);
		if (got == (ssize_t)PAGE)
			check_words(actor, &span, 0, 0, WORDS, actor->buffer);
		else if (got >= 0 || (errno != EFAULT && errno != EPERM))
			mismatch(actor, &span, 0, "process_vm_readv gave %zd, errno %d", got,
				 errno);
		else if (errno == EFAULT && span.page->kind != PAGE_DAMAGED && !slot->is_inline)
			mismatch(actor, &span, 0, "process_vm_readv: bad address");
	}
}

static void check_sample(struct actor *actor, unsigned pages)
{
	for (unsigned i = 0; i < pages; i++) {
		struct slot *slot = &slots[draw(actor) % slot_count];
		struct span span;

		if (!(actor->usable & 1u << slot->number)
		    || !pick_any(actor, slot, draw(actor), &span))
			continue;
		note(actor, OP_CHECK, slot, &span, 1);
		check_page(actor, &span, 0, 0, WORDS);
	}
}

/* Pages of threads that were changing them when the child was made: where they are now, and whether
 * something else is there, is not known. */
static void forget_others(struct actor *actor)
{
	for (unsigned i = 0; i < slot_count; i++)
		for (unsigned r = 0; actor->usable & 1u << i && r < SOURCE_REGIONS; r++)
			for (uint64_t p = 0; p < slots[i].regions[r].count; p++) {
				struct page *page = &slots[i].regions[r].pages[p];

				if (page->owner != SHARED && page->owner != actor->thread)
					page->kind = PAGE_GONE;
			}
}

__attribute__((noreturn)) static void live(struct actor *actor, uint64_t random, struct slot *peer)
{
	static struct helper helper;
	unsigned steps = (unsigned)(random >> 8) % 300;
	bool has_helper;

	actor_open(actor, actor->thread, actor->depth);
	actor->children = NULL;
	for (unsigned i = 0; i < slot_count; i++)
		slots[i].is_inherited = true;
	if (!actor->owns_all)
		forget_others(actor);
	check_sample(actor, 100 + (unsigned)(random >> 20) % 300);
	if (peer && !settings.user_mode)
		read_parent(actor, peer);
	has_helper = random >> 40 & 1 && start_helper(&helper, actor);
	for (unsigned i = 0; i < steps; i++)
		act(actor);
	if (has_helper)
		stop_helper(&helper, actor);
	note(actor, OP_FORK, NULL, NULL, 2);
	/* Children of its own that still run are left to themselves. */
	children_reap(actor, false);
	for (unsigned i = 0; random >> 41 & 1 && i < slot_count; i++)
		if (actor->usable & 1u << i)
			slot_close(actor, &slots[i], draw(actor));
	row_give_back(actor->row, atomic_load(&actor->row->state));
	_exit(0);
}

static void account(const struct child *child, int status)
{
	/* It may have been killed before it gave its row back. */
	row_give_back(child->row, child->row_state);
	if ((WIFEXITED(status) && WEXITSTATUS(status) == 0) || was_killed(child->pid))
		return;
	fail("child %d ended with %s %d", child->pid, WIFSIGNALED(status) ? "signal" : "status",
	     WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

void children_reap(struct actor *actor, bool all)
{
	for (unsigned i = 0; actor->children && i < CHILDREN_MAX; i++) {
		struct child *child = &actor->children[i];
		int status;

		if (child->pid && waitpid(child->pid, &status, all ? 0 : WNOHANG) == child->pid) {
			account(child, status);
			child->pid = 0;
		}
	}
	if (all) {
		free(actor->children);
		actor->children = NULL;
	}
}

static struct child *room_for_child(struct actor *actor)
{
	if (!actor->children)
		actor->children = calloc(CHILDREN_MAX, sizeof(*actor->children));
	for (unsigned i = 0; actor->children && i < CHILDREN_MAX; i++)
		if (!actor->children[i].pid)
			return &actor->children[i];
	return NULL;
}

/* Fork while others go on, or while nobody changes what is known. *usable: the slots that are not
 * being closed or opened at this moment. */
static int fork_at(struct actor *actor, bool all_known, struct slot *peer, uint32_t *usable)
{
	int pid;

	*usable = actor->usable;
	if (actor->is_alone)
		return fork();
	if (all_known) {
		pthread_rwlock_wrlock(&changes);
		if (peer)
			pthread_rwlock_rdlock(&peer->lock);
		pthread_rwlock_wrlock(&moves);
		pid = fork();
		if (pid != 0) {
			pthread_rwlock_unlock(&moves);
			pthread_rwlock_unlock(&changes);
		}
		return pid;
	}
	if (peer)
		pthread_rwlock_rdlock(&peer->lock);
	for (unsigned i = 0; i < slot_count; i++)
		if (&slots[i] != peer && pthread_rwlock_tryrdlock(&slots[i].lock) != 0)
			*usable &= ~(1u << i);
	pthread_rwlock_wrlock(&moves);
	pid = fork();
	if (pid != 0)
		pthread_rwlock_unlock(&moves);
	for (unsigned i = 0; pid != 0 && i < slot_count; i++)
		if (&slots[i] != peer && *usable & 1u << i)
			pthread_rwlock_unlock(&slots[i].lock);
	return pid;
}

static void part(struct child *child, enum way way, uint64_t random)
{
	int status;

	if (way == CHILD_LEFT)
		return;
	if (way == CHILD_KILLED) {
		usleep(random % 5000);
		note_killed(child->pid);
		kill(child->pid, SIGKILL);
		count(&board->kills, 1);
	}
	if (waitpid(child->pid, &status, 0) != child->pid)
		fail("waitpid: errno %d", errno);
	account(child, status);
	child->pid = 0;
}

void do_fork(struct actor *actor, uint64_t random)
{
	enum way way = (enum way)(random % 3);
	bool all_known = random >> 2 & 1;
	struct slot *peer = way == CHILD_WAITED_FOR && !actor->is_alone
				    ? &slots[(random >> 3) % slot_count]
				    : NULL;
	uint64_t seed = draw(actor);
	struct child *child;
	uint32_t usable;

	note(actor, OP_FORK, NULL, NULL, (unsigned)way);
	children_reap(actor, false);
	child = room_for_child(actor);
	if (!child || actor->depth == DEPTH_MAX || !(actor->usable))
		return;
	child->row = row_take(actor->depth + 1, actor->thread);
	if (!child->row)
		return;
	child->row_state = atomic_load(&child->row->state);
	child->pid = fork_at(actor, all_known, peer, &usable);
	if (child->pid == 0) {
		/* The parent may have been killed, and its row been given back, before this. */
		if (atomic_load(&child->row->state) != child->row_state)
			_exit(0);
		row_adopt(child->row);
		actor->row = child->row;
		actor->owns_all = actor->is_alone ? actor->owns_all : all_known;
		actor->is_alone = true;
		actor->depth++;
		actor->usable = usable;
		actor->random = seed;
		live(actor, random, peer);
	}
	if (child->pid < 0) {
		child->pid = 0;
		row_give_back(child->row, child->row_state);
		if (errno != EAGAIN && errno != ENOMEM)
			fail("fork: errno %d", errno);
	} else {
		count(actor->depth ? &board->grandchildren : &board->forks, 1);
		part(child, way, random >> 10);
	}
	if (peer)
		pthread_rwlock_unlock(&peer->lock);
}
