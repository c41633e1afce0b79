// Switching between stacks.
#pragma once

#include <stddef.h>
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace simt {

struct Context {
#ifdef __x86_64__
  void* stack_pointer;
#else
  ucontext_t context;
#endif
};

// The first switch to `context` calls entry on that stack; entry must not return.
void prepare(Context& context, void* stack, size_t bytes, void (*entry)());
void switch_context(Context& from, Context& to);
// From a signal handler, whose third argument is given: to goes on once the handler has returned.
void leave_signal(void* signal_context, Context& to);
// Whether the access that raised the signal was a write; false where that is not known.
bool signal_was_write(const void* signal_context);

}  // namespace simt
