-- Which of two entry ids comes first. It is put before the scripts that compare some. It has functions only.
--
-- Ids are compared as text: their numbers may not fit a Lua number.
-- Cost  O(1).
local function before(a, b)
  local function number_before(a, b)
    if #a ~= #b then return #a < #b end
    return a < b
  end
  local a_ms, a_seq = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_seq = string.match(b, '^(%d+)-(%d+)$')
  if a_ms ~= b_ms then return number_before(a_ms, b_ms) end
  return number_before(a_seq, b_seq)
end
