/* Where the threads of a fill run, and when. */
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fill.h"

/* Only what nobody else wants of the processors and of the disk. */
void lr_worker_yield(void)
{
	struct sched_param none = {0};

	if (sched_setscheduler(0, SCHED_IDLE, &none) < 0)
		setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 19);
	/* ioprio_set(IOPRIO_WHO_PROCESS, this thread, IOPRIO_CLASS_IDLE), which has no header. */
	syscall(SYS_ioprio_set, 1, 0, 3 << 13);
}

/* Where there is a worker for each processor each stays on its own: the kernel's balance hardly
 * counts threads of the class IDLE, and would leave two on one processor and none on the other. */
void lr_worker_stay(struct lr_worker *worker)
{
	struct lr_fill *fill = worker->fill;
	uint32_t number = (uint32_t)(worker - fill->workers);
	cpu_set_t own;

	pthread_mutex_lock(&fill->lock);
	worker->id = (int32_t)syscall(SYS_gettid);
	pthread_mutex_unlock(&fill->lock);
	if ((int)fill->worker_count < CPU_COUNT(&fill->processors))
		return;
	number %= (uint32_t)CPU_COUNT(&fill->processors);
	CPU_ZERO(&own);
	for (size_t i = 0; i < CPU_SETSIZE; i++)
		if (CPU_ISSET(i, &fill->processors) && number-- == 0)
			CPU_SET(i, &own);
	sched_setaffinity(0, sizeof(own), &own);
}

/* There is nothing left to begin: who is still at work on a busy processor may come to this one. */
void lr_worker_let_others_move(struct lr_worker *worker)
{
	struct lr_fill *fill = worker->fill;

	pthread_mutex_lock(&fill->lock);
	worker->id = 0;
	for (uint32_t i = 0; i < fill->worker_count; i++)
		if (fill->workers[i].id)
			sched_setaffinity(fill->workers[i].id, sizeof(fill->processors),
					  &fill->processors);
	pthread_mutex_unlock(&fill->lock);
}
