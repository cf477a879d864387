package storage_test

import (
	"testing"

	"pitr/storage"
	"pitr/storage/storagetest"
	"pitr/storage/storagetest/azureserver"
)

// openConfig opens what c describes.
func openConfig(t *testing.T, c storage.Config) storage.Bucket {
	t.Helper()
	b, err := storage.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAzureContract(t *testing.T) {
	server := azureserver.Start(t)
	storagetest.Contract{
		Open: func(t *testing.T) storage.Bucket { return openConfig(t, server.Config(t)) },
		// Each object is a request, and the emulator slows down with their number: 12,000 take 20 seconds. Two pages of
		// 5,000 prove what there is to prove.
		Many: 6_000,
	}.Run(t)
}
