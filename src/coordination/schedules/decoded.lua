-- What a schedule keeps, decoded; nil for what is not there, or is no MessagePack. Put before the scripts that need
-- it. Only scripts write there, and what they write is bounded.
local function decoded(bytes)
  if not bytes then return nil end
  local ok, value = pcall(cmsgpack.unpack, bytes)
  return ok and type(value) == 'table' and value or nil
end
