#include "fiber.h"

#include <stdint.h>
#include <ucontext.h>

namespace simt {

#ifdef __x86_64__

// By hand: swapcontext makes two system calls a switch.
asm(R"(
.text
.globl fastlstm_simt_switch
.hidden fastlstm_simt_switch
.type fastlstm_simt_switch, @function
fastlstm_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
.globl fastlstm_simt_resume
.hidden fastlstm_simt_resume
fastlstm_simt_resume:
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastlstm_simt_switch, .-fastlstm_simt_switch
)");
extern "C" void fastlstm_simt_switch(void** save, void* stack_pointer);
extern "C" void fastlstm_simt_resume();

void prepare(Context& context, void* stack, size_t bytes, void (*entry)()) {
  // What the switch pops: six registers, then the entry as its return address, and above that a
  // return address of the entry's own, which leaves the stack aligned as after a call.
  uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15};
  void** sp = reinterpret_cast<void**>(top) - 8;
  for (int i = 0; i < 8; ++i) sp[i] = nullptr;
  sp[6] = reinterpret_cast<void*>(entry);
  context.stack_pointer = sp;
}

void switch_context(Context& from, Context& to) {
  fastlstm_simt_switch(&from.stack_pointer, to.stack_pointer);
}

void leave_signal(void* signal_context, Context& to) {
  auto& registers = static_cast<ucontext_t*>(signal_context)->uc_mcontext.gregs;
  registers[REG_RSP] = reinterpret_cast<greg_t>(to.stack_pointer);
  registers[REG_RIP] = reinterpret_cast<greg_t>(&fastlstm_simt_resume);
}

bool signal_was_write(const void* signal_context) {
  return static_cast<const ucontext_t*>(signal_context)->uc_mcontext.gregs[REG_ERR] & 2;
}

#else

void prepare(Context& context, void* stack, size_t bytes, void (*entry)()) {
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = stack;
  context.context.uc_stack.ss_size = bytes;
  context.context.uc_link = nullptr;
  makecontext(&context.context, entry, 0);
}

void switch_context(Context& from, Context& to) { swapcontext(&from.context, &to.context); }

void leave_signal(void*, Context& to) { setcontext(&to.context); }

bool signal_was_write(const void*) { return false; }

#endif

}  // namespace simt
