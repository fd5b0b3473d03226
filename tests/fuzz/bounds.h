/*
 * What one image may cost: memory and processor time. Exceeding either is a finding.
 */
#ifndef LR_FUZZ_BOUNDS_H
#define LR_FUZZ_BOUNDS_H

/* Once, before the first image. */
void bounds_init(void);
void bounds_begin(void);
/* Aborts, with figures, where the bounds were exceeded since bounds_begin(). */
void bounds_end(void);

#endif
