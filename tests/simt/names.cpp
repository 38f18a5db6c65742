// SPDX-License-Identifier: Apache-2.0
// Names of functions, from the symbol table of the file that they were loaded from: kernels are
// local to their file, so the dynamic linker does not know them.
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "simt.h"

namespace simt {
namespace {

std::string symbol_at(const char* path, uint64_t offset) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  if (bytes.size() < sizeof(Elf64_Ehdr)) return {};
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(bytes.data());
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(bytes.data() + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const Elf64_Sym*>(bytes.data() + sections[i].sh_offset);
    const char* names = bytes.data() + sections[sections[i].sh_link].sh_offset;
    for (size_t k = 0; k < sections[i].sh_size / sizeof(Elf64_Sym); ++k) {
      const bool function = ELF64_ST_TYPE(symbols[k].st_info) == STT_FUNC;
      if (function && symbols[k].st_value == offset) return names + symbols[k].st_name;
    }
  }
  return {};
}

// "void a::(anonymous namespace)::kernel<float, (a::Kind)1>(a::Params)" -> "kernel<float,
// (Kind)1>".
std::string short_name(std::string name) {
  static const std::string unnamed = "(anonymous namespace)::";
  for (size_t at; (at = name.find(unnamed)) != std::string::npos;) name.erase(at, unnamed.size());
  int depth = 0;  // of template arguments; the parameters begin at the first bracket outside
  for (size_t i = 0; i < name.size(); ++i) {
    depth += (name[i] == '<') - (name[i] == '>');
    if (name[i] != '(' || depth > 0) continue;
    name.erase(i);
    break;
  }
  const size_t arguments = std::min(name.find('<'), name.size());
  const size_t scope = name.rfind("::", arguments);
  const size_t first = scope != std::string::npos ? scope + 2 : name.rfind(' ', arguments) + 1;
  return name.substr(first);
}

std::string find_name(const void* address) {
  Dl_info info;
  std::ostringstream number;
  number << address;
  if (dladdr(address, &info) == 0) return number.str();
  const auto offset = static_cast<uint64_t>(static_cast<const char*>(address) -
                                            static_cast<const char*>(info.dli_fbase));
  const std::string symbol = symbol_at(info.dli_fname, offset);
  int status = -1;
  const std::unique_ptr<char, void (*)(void*)> text(
      abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status), std::free);
  return status == 0 ? short_name(text.get()) : number.str();
}

}  // namespace

std::string function_name(const void* address) {
  static std::map<const void*, std::string> known;
  const auto [entry, is_new] = known.try_emplace(address);
  if (is_new) entry->second = find_name(address);
  return entry->second;
}

}  // namespace simt
