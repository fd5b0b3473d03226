/* Serving a process that is restored as a whole: when all of it is mapped, and the children that it
 * forks. */
#include <unistd.h>

#include "children.h"
#include "jobs.h"
#include "session.h"

static bool is_here(const lr_session *session)
{
	return session->pid == getpid() && session->target.is_remote;
}

int lr_session_settle(lr_session *session)
{
	struct lr_target *target = &session->target;

	if (!is_here(session) || !target->is_zero_outside)
		return LR_ERR_ARGUMENT;
	/* The pager has it from its asking the kernel until it has made something of the answer:
	 * what was not there just now must not count as given up. */
	pthread_mutex_lock(&session->pager.loader.busy);
	atomic_store(&target->is_mapping, false);
	if (target->kept)
		atomic_store(&target->kept->header->is_settled, 1);
	pthread_mutex_unlock(&session->pager.loader.busy);
	return LR_OK;
}

int lr_session_next_child(lr_session *session, struct lr_child *ret_child)
{
	struct lr_child child;
	int code;

	if (!is_here(session) || !session->target.takes_children)
		return LR_ERR_ARGUMENT;
	code = lr_children_next(&session->target, &child);
	if (code > 0)
		*ret_child = child;
	return code;
}

int lr_session_child_is_kept(lr_session *session, uint32_t number)
{
	int code;

	if (!is_here(session) || !session->target.takes_children)
		return LR_ERR_ARGUMENT;
	code = lr_children_forget(&session->target, number);
	/* It may wait for there being room. */
	if (code == LR_OK)
		lr_pager_ring(&session->pager);
	return code;
}

int lr_state_children(int32_t state, struct lr_child *ret_children, uint32_t room)
{
	struct lr_kept_child found[LR_KEPT_CHILDREN_MAX];
	int count = lr_kept_children(state, found, LR_KEPT_CHILDREN_MAX);

	for (int i = 0; i < count && i < (int)LR_KEPT_CHILDREN_MAX && (uint32_t)i < room; i++)
		ret_children[i] = (struct lr_child){
			.uffd = found[i].uffd,
			.state = found[i].state,
			.number = atomic_load(&found[i].number),
		};
	return count;
}

int lr_state_set_child(int32_t state, const struct lr_child *child)
{
	struct lr_kept_child kept = {.uffd = child->uffd, .state = child->state};

	atomic_store(&kept.number, child->number);
	return lr_kept_set_child(state, &kept);
}
