// SPDX-License-Identifier: Apache-2.0
// Dictionaries of Python objects, without attribute look-ups, and whether they were written to.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

namespace darts_fast {

// An interned name, for look-ups by identity.
struct Name {
  explicit Name(const char* text) : key(PyUnicode_InternFromString(text)) {}
  PyObject* key;
};

inline pybind11::object attributes_of(PyObject* module) {
  PyObject* attributes = PyObject_GenericGetDict(module, nullptr);
  if (attributes == nullptr) throw pybind11::error_already_set();
  return pybind11::reinterpret_steal<pybind11::object>(attributes);
}

// Borrowed, or null where there is none.
inline PyObject* find(PyObject* table, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(table, key);
  if (value == nullptr && PyErr_Occurred() != nullptr) throw pybind11::error_already_set();
  return value;
}

// Borrowed.
inline PyObject* get(PyObject* table, PyObject* key) {
  PyObject* value = find(table, key);
  if (value == nullptr) throw pybind11::key_error(pybind11::str(key).cast<std::string>());
  return value;
}

inline bool is_true(PyObject* value) {
  const int truth = PyObject_IsTrue(value);
  if (truth < 0) throw pybind11::error_already_set();
  return truth == 1;
}

// Where an object keeps its dictionary; null where the interpreter does not say.
inline PyObject** dictionary_slot([[maybe_unused]] PyObject* object) {
#if PY_VERSION_HEX < 0x030C0000
  return _PyObject_GetDictPtr(object);
#else
  return nullptr;
#endif
}

// A number that no dictionary has had before, from every write on (PEP 509): while it stays, the
// dictionary has the same keys with the same values. 0 where the interpreter keeps none.
inline uint64_t version_of([[maybe_unused]] PyObject* table) {
#if PY_VERSION_HEX < 0x030C0000
  return reinterpret_cast<PyDictObject*>(table)->ma_version_tag;
#else
  return 0;
#endif
}

// A dictionary as it was when it was last looked at. Its owner keeps it alive.
class TableVersion {
 public:
  TableVersion() = default;
  explicit TableVersion(PyObject* table) : table_(table), version_(version_of(table)) {}

  // False as well where that cannot be known.
  bool is_current() const { return version_ != 0 && version_of(table_) == version_; }

  PyObject* table() const { return table_; }

 private:
  PyObject* table_ = nullptr;
  uint64_t version_ = 0;
};

// The dictionary of an object's attributes, which another one may replace.
class AttributesVersion {
 public:
  AttributesVersion() = default;
  explicit AttributesVersion(PyObject* object)
      : slot_(dictionary_slot(object)),
        version_(slot_ != nullptr && *slot_ != nullptr ? TableVersion(*slot_) : TableVersion()) {}

  bool is_current() const {
    return slot_ != nullptr && *slot_ == version_.table() && version_.is_current();
  }

 private:
  PyObject** slot_ = nullptr;
  TableVersion version_;
};

}  // namespace darts_fast
