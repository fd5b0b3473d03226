#include "children.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

_Static_assert(LR_CHILDREN_MAX == LR_KEPT_CHILDREN_MAX, "as many as are told of are kept");

static uint32_t number_of(const struct lr_kept_child *child)
{
	return atomic_load_explicit(&child->number, memory_order_relaxed);
}

static void set_number(struct lr_kept_child *child, uint32_t number)
{
	atomic_store_explicit(&child->number, number, memory_order_relaxed);
}

uint32_t lr_children_room(struct lr_target *target)
{
	uint32_t room = 0;

	if (!target->takes_children)
		return UINT32_MAX;
	pthread_mutex_lock(&target->children_lock);
	for (uint32_t i = 0; i < LR_KEPT_CHILDREN_MAX; i++)
		room += number_of(&target->children[i]) == 0;
	pthread_mutex_unlock(&target->children_lock);
	return room;
}

bool lr_children_any(struct lr_target *target)
{
	return target->takes_children && lr_children_room(target) < LR_KEPT_CHILDREN_MAX;
}

void lr_children_add(struct lr_target *target, int uffd, int state, uint32_t number)
{
	uint32_t slot = 0;

	pthread_mutex_lock(&target->children_lock);
	while (number_of(&target->children[slot]) != 0)
		slot++;
	target->children[slot].uffd = uffd;
	target->children[slot].state = state;
	target->is_taken[slot] = false;
	target->is_held[slot] = target->uffd.tells_quiet;
	set_number(&target->children[slot], number);
	pthread_mutex_unlock(&target->children_lock);
}

void lr_children_save(struct lr_target *target, struct lr_kept_table *table)
{
	memcpy(table->children, target->children, sizeof(table->children));
}

bool lr_children_load(struct lr_target *target, const struct lr_kept_table *table)
{
	memcpy(target->children, table->children, sizeof(target->children));
	for (uint32_t i = 0; i < LR_KEPT_CHILDREN_MAX; i++) {
		struct lr_kept_child *child = &target->children[i];

		if (number_of(child) == 0)
			continue;
		if (!target->takes_children || number_of(child) > table->told)
			return false;
		if (child->uffd < 0 || !lr_uffd_is_one(child->uffd))
			child->uffd = -1;
		if (child->state < 0 || fcntl(child->state, F_GETFD) < 0)
			child->state = -1;
	}
	return true;
}

void lr_children_drop_after(struct lr_target *target, uint64_t number)
{
	for (uint32_t i = 0; i < LR_KEPT_CHILDREN_MAX; i++)
		if (number_of(&target->children[i]) > number) {
			close(target->children[i].state);
			set_number(&target->children[i], 0);
		}
}

bool lr_children_is_held(struct lr_target *target, uint32_t slot, int *ret_uffd)
{
	*ret_uffd = target->children[slot].uffd;
	return target->is_held[slot];
}

bool lr_children_any_held(struct lr_target *target)
{
	bool is_any = false;

	for (uint32_t i = 0; i < LR_KEPT_CHILDREN_MAX; i++)
		is_any |= target->is_held[i];
	return is_any;
}

bool lr_children_release(struct lr_target *target)
{
	bool is_any;

	pthread_mutex_lock(&target->children_lock);
	is_any = lr_children_any_held(target);
	memset(target->is_held, 0, sizeof(target->is_held));
	pthread_mutex_unlock(&target->children_lock);
	return is_any;
}

int lr_children_next(struct lr_target *target, struct lr_child *ret_child)
{
	int64_t first = -1;

	pthread_mutex_lock(&target->children_lock);
	for (uint32_t i = 0; i < LR_KEPT_CHILDREN_MAX; i++) {
		uint32_t number = number_of(&target->children[i]);

		/* Of a process that is gone nothing is told any more. */
		if (number != 0 && !target->is_taken[i]
		    && (!target->is_held[i] || atomic_load(&target->is_gone))
		    && (first < 0 || number < number_of(&target->children[first])))
			first = i;
	}
	if (first >= 0) {
		target->is_taken[first] = true;
		*ret_child = (struct lr_child){
			.uffd = target->children[first].uffd,
			.state = target->children[first].state,
			.number = number_of(&target->children[first]),
		};
	}
	pthread_mutex_unlock(&target->children_lock);
	return first >= 0;
}

int lr_children_forget(struct lr_target *target, uint32_t number)
{
	struct lr_kept_table *table;
	int code = LR_ERR_NOT_FOUND;

	pthread_mutex_lock(&target->children_lock);
	for (uint32_t i = 0; i < LR_KEPT_CHILDREN_MAX && number != 0; i++) {
		if (number_of(&target->children[i]) != number || !target->is_taken[i])
			continue;
		set_number(&target->children[i], 0);
		/* In the table that counts, which nobody publishes anew meanwhile. */
		table = lr_kept_current(target->kept);
		if (table)
			set_number(&table->children[i], 0);
		code = LR_OK;
	}
	pthread_mutex_unlock(&target->children_lock);
	return code;
}
