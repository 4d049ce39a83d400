// What Python knows of a struct: its fields by name, kind, place and size. The struct stands in C++ only; Python builds
// its twin from the text that is exported here, so the two cannot differ.
//
//     struct AddArgs { Rows rows; const float* x; float* y; };
//     STRETTO_STRUCT(AddArgs, rows, x, y)      // exports AddArgs_fields(): "rows:Rows:0:8 x:ptr:8:8 y:ptr:16:8"
//
// Every byte must belong to a named field: one that is left out does not compile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace fields {

struct Field {
    const char* name;
    const char* kind;
    int count;  // of an array, else 1
    size_t offset, size;
};

template <class T>
struct Kind;  // a struct inside a struct is named by STRETTO_STRUCT

template <>
struct Kind<int32_t> {
    static constexpr const char* name = "i32";
    static constexpr int count = 1;
};
template <>
struct Kind<int64_t> {
    static constexpr const char* name = "i64";
    static constexpr int count = 1;
};
template <>
struct Kind<uint32_t> {
    static constexpr const char* name = "u32";
    static constexpr int count = 1;
};
template <>
struct Kind<float> {
    static constexpr const char* name = "f32";
    static constexpr int count = 1;
};
template <class T>
struct Kind<T*> {
    static constexpr const char* name = "ptr";
    static constexpr int count = 1;
};
template <class T, size_t N>
struct Kind<T[N]> {
    static constexpr const char* name = Kind<T>::name;
    static constexpr int count = int(N);
};

// Whether the fields lie one after the other and fill a struct of `size` bytes.
template <size_t N>
constexpr bool fill(const Field (&list)[N], size_t size) {
    size_t end = 0;
    for (const Field& field : list) {
        if (field.offset != end) return false;
        end += field.size;
    }
    return end == size;
}

template <size_t N>
std::string describe(const Field (&list)[N]) {
    std::string text;
    for (const Field& f : list) {
        std::string kind = f.count > 1 ? f.kind + std::string("*") + std::to_string(f.count) : f.kind;
        text += std::string(text.empty() ? "" : " ") + f.name + ":" + kind + ":" + std::to_string(f.offset) + ":" +
                std::to_string(f.size);
    }
    return text;
}

}  // namespace fields

#define STRETTO_FIELD(S, f)                                                                                           \
    fields::Field{#f, fields::Kind<decltype(S::f)>::name, fields::Kind<decltype(S::f)>::count, offsetof(S, f),        \
                  sizeof(S::f)},

// STRETTO_EACH(S, a, b, ...) is STRETTO_FIELD(S, a) STRETTO_FIELD(S, b) ..., for up to 24 fields.
#define STRETTO_1(S, f) STRETTO_FIELD(S, f)
#define STRETTO_2(S, f, ...) STRETTO_FIELD(S, f) STRETTO_1(S, __VA_ARGS__)
#define STRETTO_3(S, f, ...) STRETTO_FIELD(S, f) STRETTO_2(S, __VA_ARGS__)
#define STRETTO_4(S, f, ...) STRETTO_FIELD(S, f) STRETTO_3(S, __VA_ARGS__)
#define STRETTO_5(S, f, ...) STRETTO_FIELD(S, f) STRETTO_4(S, __VA_ARGS__)
#define STRETTO_6(S, f, ...) STRETTO_FIELD(S, f) STRETTO_5(S, __VA_ARGS__)
#define STRETTO_7(S, f, ...) STRETTO_FIELD(S, f) STRETTO_6(S, __VA_ARGS__)
#define STRETTO_8(S, f, ...) STRETTO_FIELD(S, f) STRETTO_7(S, __VA_ARGS__)
#define STRETTO_9(S, f, ...) STRETTO_FIELD(S, f) STRETTO_8(S, __VA_ARGS__)
#define STRETTO_10(S, f, ...) STRETTO_FIELD(S, f) STRETTO_9(S, __VA_ARGS__)
#define STRETTO_11(S, f, ...) STRETTO_FIELD(S, f) STRETTO_10(S, __VA_ARGS__)
#define STRETTO_12(S, f, ...) STRETTO_FIELD(S, f) STRETTO_11(S, __VA_ARGS__)
#define STRETTO_13(S, f, ...) STRETTO_FIELD(S, f) STRETTO_12(S, __VA_ARGS__)
#define STRETTO_14(S, f, ...) STRETTO_FIELD(S, f) STRETTO_13(S, __VA_ARGS__)
#define STRETTO_15(S, f, ...) STRETTO_FIELD(S, f) STRETTO_14(S, __VA_ARGS__)
#define STRETTO_16(S, f, ...) STRETTO_FIELD(S, f) STRETTO_15(S, __VA_ARGS__)
#define STRETTO_17(S, f, ...) STRETTO_FIELD(S, f) STRETTO_16(S, __VA_ARGS__)
#define STRETTO_18(S, f, ...) STRETTO_FIELD(S, f) STRETTO_17(S, __VA_ARGS__)
#define STRETTO_19(S, f, ...) STRETTO_FIELD(S, f) STRETTO_18(S, __VA_ARGS__)
#define STRETTO_20(S, f, ...) STRETTO_FIELD(S, f) STRETTO_19(S, __VA_ARGS__)
#define STRETTO_21(S, f, ...) STRETTO_FIELD(S, f) STRETTO_20(S, __VA_ARGS__)
#define STRETTO_22(S, f, ...) STRETTO_FIELD(S, f) STRETTO_21(S, __VA_ARGS__)
#define STRETTO_23(S, f, ...) STRETTO_FIELD(S, f) STRETTO_22(S, __VA_ARGS__)
#define STRETTO_24(S, f, ...) STRETTO_FIELD(S, f) STRETTO_23(S, __VA_ARGS__)
#define STRETTO_PICK(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x, NAME, ...) NAME
#define STRETTO_EACH(S, ...)                                                                                          \
    STRETTO_PICK(__VA_ARGS__, STRETTO_24, STRETTO_23, STRETTO_22, STRETTO_21, STRETTO_20, STRETTO_19, STRETTO_18,     \
                 STRETTO_17, STRETTO_16, STRETTO_15, STRETTO_14, STRETTO_13, STRETTO_12, STRETTO_11, STRETTO_10,      \
                 STRETTO_9, STRETTO_8, STRETTO_7, STRETTO_6, STRETTO_5, STRETTO_4, STRETTO_3, STRETTO_2, STRETTO_1,   \
                 )(S, __VA_ARGS__)

// Exports the fields of `S` as those of `name`.
#define STRETTO_FIELDS(name, S, ...)                                                                                  \
    static constexpr fields::Field name##_list[] = {STRETTO_EACH(S, __VA_ARGS__)};                                    \
    static_assert(fields::fill(name##_list, sizeof(S)), "every byte of " #S " belongs to a field, in order");         \
    extern "C" const char* name##_fields() {                                                                          \
        static const std::string text = fields::describe(name##_list);                                                \
        return text.c_str();                                                                                          \
    }

// Names a struct, so that it may be a field of others, and exports it. At namespace scope, once per library.
#define STRETTO_NAME(S)                                                                                               \
    template <>                                                                                                       \
    struct fields::Kind<S> {                                                                                          \
        static constexpr const char* name = #S;                                                                       \
        static constexpr int count = 1;                                                                               \
    };
#define STRETTO_STRUCT(S, ...) STRETTO_FIELDS(S, S, __VA_ARGS__)

// An enum of int32 whose names Python reads in order: STRETTO_ENUM in a header, STRETTO_EXPORT_ENUM in one source file.
#define STRETTO_ENUM(Name, ...)                                                                                       \
    enum Name : int32_t { __VA_ARGS__ };                                                                              \
    constexpr const char Name##_list[] = #__VA_ARGS__;
#define STRETTO_EXPORT_ENUM(Name)                                                                                     \
    extern "C" const char* Name##_names() { return Name##_list; }

// A number that Python reads by name.
#define STRETTO_EXPORT_LIMIT(NAME)                                                                                    \
    extern "C" int64_t NAME##_limit() { return NAME; }
