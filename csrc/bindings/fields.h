// Classes of plain fields: one table makes the keywords of __init__, the attributes and the text.
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "convert.h"

namespace metal_sdpa::python {

// --- values to and from Python ------------------------------------------------------------------

inline nb::object show(std::int64_t value) { return nb::int_(value); }
inline nb::object show(bool value) { return nb::bool_(value); }
inline nb::object show(float value) { return nb::float_(static_cast<double>(value)); }
inline nb::object show(DType value) { return nb::cast(value); }
inline nb::object show(const std::string& value) { return nb::str(value.c_str()); }
inline nb::object show(const std::vector<std::int64_t>& values) {
  nb::list entries;
  for (const std::int64_t value : values) entries.append(value);
  return nb::tuple(entries);
}
inline nb::object show(const Buffer& value) { return value.valid() ? nb::cast(value) : nb::none(); }
template <typename T>
nb::object show(const T& value) {
  return nb::cast(T(value));
}
template <typename T>
nb::object show(const std::optional<T>& value) {
  return value.has_value() ? show(*value) : nb::none();
}

inline void take(Argument argument, nb::handle value, std::int64_t& field) {
  field = to_int64(argument, value);
}
inline void take(Argument argument, nb::handle value, bool& field) {
  field = to_bool(argument, value);
}
inline void take(Argument argument, nb::handle value, float& field) {
  field = static_cast<float>(to_double(argument, value));
}
inline void take(Argument argument, nb::handle value, DType& field) {
  field = to_dtype(argument, value);
}
inline void take(Argument argument, nb::handle value, std::string& field) {
  field = to_text(argument, value);
}
inline void take(Argument argument, nb::handle value, std::vector<std::int64_t>& field) {
  field = to_int_list(argument, value);
}
inline void take(Argument argument, nb::handle value, Buffer& field) {
  field = value.is_none() ? Buffer() : to_object<Buffer>(argument, value, "a Buffer or None");
}
template <typename T>
void take(Argument argument, nb::handle value, T& field) {
  const std::string wanted = nb::cast<std::string>(nb::type<T>().attr("__name__"));
  field = to_object<T>(argument, value, wanted.c_str());
}
template <typename T>
void take(Argument argument, nb::handle value, std::optional<T>& field) {
  if (value.is_none()) {
    field.reset();
  } else {
    take(argument, value, field.emplace());
  }
}

// --- the table ----------------------------------------------------------------------------------

template <typename Owner>
struct Field {
  const char* name;
  const char* type;   ///< as the type stub says it
  const char* value;  ///< the default as the type stub says it
  const char* doc;
  nb::object (*get)(const Owner& owner);
  void (*set)(Owner& owner, Argument argument, nb::handle value);
};

template <typename Owner, auto Member>
constexpr Field<Owner> field(const char* name, const char* type, const char* value,
                             const char* doc) {
  return {name,
          type,
          value,
          doc,
          [](const Owner& owner) { return show(owner.*Member); },
          [](Owner& owner, Argument argument, nb::handle given) {
            take(argument, given, owner.*Member);
          }};
}

template <typename Owner>
using Fields = std::vector<Field<Owner>>;

template <typename Owner>
void set_field(const char* call, const Fields<Owner>& fields, Owner& owner, nb::handle key,
               nb::handle value) {
  const std::string name = nb::cast<std::string>(key);
  for (const Field<Owner>& entry : fields) {
    if (name == entry.name) return entry.set(owner, {call, entry.name}, value);
  }
  PyErr_SetString(PyExc_TypeError,
                  text_of(call, ": got an unexpected argument '", name, "'").c_str());
  nb::raise_python_error();
}

template <typename Owner>
std::string describe_fields(const char* name, const Fields<Owner>& fields, const Owner& owner) {
  std::string text = text_of(name, "(");
  for (const Field<Owner>& entry : fields) {
    const std::string value = nb::cast<std::string>(nb::repr(entry.get(owner)));
    text += text_of(text.back() == '(' ? "" : ", ", entry.name, "=", value);
  }
  return text + ")";
}

/// Text that lives as long as the process, as nanobind wants signatures.
inline const char* keep_text(std::string text) {
  static auto* const texts = new std::deque<std::string>;
  return texts->emplace_back(std::move(text)).c_str();
}

template <typename Owner>
const char* init_signature(const Fields<Owner>& fields) {
  std::string text = "def __init__(self, *";
  for (const Field<Owner>& entry : fields) {
    text += text_of(", ", entry.name, ": ", entry.type, " = ", entry.value);
  }
  return keep_text(text + ") -> None");
}

/// __init__ with a keyword for each field.
template <typename Owner>
void bind_init(nb::class_<Owner>& bound, const char* name, const Fields<Owner>& fields) {
  bound.def(
      "__init__",
      [name, &fields](Owner* self, const nb::kwargs& keywords) {
        Owner made;
        for (const auto& [key, value] : keywords) set_field(name, fields, made, key, value);
        new (self) Owner(std::move(made));
      },
      nb::sig(init_signature(fields)));
}

enum class Access { read, write };

/// An attribute for each field, and __repr__.
template <typename Owner>
void bind_fields(nb::class_<Owner>& bound, const char* name, const Fields<Owner>& fields,
                 Access access) {
  for (const Field<Owner>& entry : fields) {
    const Field<Owner>* const row = &entry;
    const auto get = [row](const Owner& self) { return row->get(self); };
    const char* getter = keep_text(text_of("def ", entry.name, "(self) -> ", entry.type));
    if (access == Access::read) {
      bound.def_prop_ro(entry.name, get, nb::sig(getter), entry.doc);
      continue;
    }
    const char* setter =
        keep_text(text_of("def ", entry.name, "(self, value: ", entry.type, ", /) -> None"));
    bound.def_prop_rw(
        entry.name, get,
        [row, name](Owner& self, nb::handle value) { row->set(self, {name, row->name}, value); },
        nb::for_getter(nb::sig(getter)), nb::for_setter(nb::arg("value").none()),
        nb::for_setter(nb::sig(setter)), entry.doc);
  }
  bound.def("__repr__",
            [name, &fields](const Owner& self) { return describe_fields(name, fields, self); });
}

}  // namespace metal_sdpa::python
